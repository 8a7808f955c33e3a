"""Small data sets written to the letter of their published layouts, for tests and for the gallery in nbs/parts/datasets.ipynb.

Where each layout is described stands on the page of its reader. An episode is a dictionary: `pictures` (uint8 `n h w 3`, upright), `place` (`n 3`, m:
right, away, up; what the robot's numbers say) and `said`, the instruction."""
import csv, json, shutil, zipfile
from pathlib import Path

import numpy as np

HZ = 10  # of all that is written here; where a layout fixes a rate, its own
CONTROLLER = dict(type='OSC_POSE', input_max=1, input_min=-1, output_max=[.05] * 3 + [.5] * 3, output_min=[-.05] * 3 + [-.5] * 3, control_delta=True)


def disc_episode(n=30, h=96, w=128, phase=0., said='push the disc to the right'):
    "A disc on its way over a striped table; its place in metres is 1 cm a 4 pixels from the middle of the picture."
    y, x = np.mgrid[:h, :w]; at = np.stack([w * np.linspace(.15, .85, n), h * (.5 + .25 * np.sin(phase + np.arange(n) / 6))], 1)
    pictures = np.full((n, h, w, 3), 190, np.uint8); pictures[:, ::8] = 170
    for frame, (u, v) in zip(pictures, at): frame[np.hypot(x - u, y - v) < h / 7] = (213, 94, 0)
    return dict(pictures=pictures, place=np.stack([(at[:, 0] - w / 2) / 400, np.zeros(n), (h / 2 - at[:, 1]) / 400], 1), said=said)


def disc_at(frames):
    "`n 2`: column and row of the disc's middle, in shares of the picture."
    found = [np.nonzero(f[..., 0].astype(int) - f[..., 2] > 100) for f in frames]
    return np.array([(x.mean() / f.shape[1], y.mean() / f.shape[0]) for (y, x), f in zip(found, frames)])


def moves(e):
    "`n 7`: the change of place to the next row, no turning, a gripper that closes in the middle."
    n = len(e['place'])
    return np.concatenate([np.diff(e['place'], axis=0, append=e['place'][-1:]), np.zeros((n, 3)), np.where(np.arange(n) < n / 2, -1., 1.)[:, None]], 1)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return path


def jpeg(image):
    import cv2
    return cv2.imencode('.jpg', np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


# --- people: a video and what is said about it ------------------------------------------------------------------------------------------

def folder(root, film: Path, said):
    put(root/'a clip.mp4', film.read_bytes())
    put(root/'instructions.csv', f'file,instruction\na clip.mp4,"{said}"\n')


def ssv2(root, frames, said, what, fps=12):
    import av
    path = root/'20bn-something-something-v2'/'78687.webm'; path.parent.mkdir(parents=True)
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libvpx-vp9', rate=fps); stream.height, stream.width = frames[0].shape[:2]; stream.pix_fmt = 'yuv420p'
        stream.options = {'deadline': 'realtime', 'cpu-used': '8'}; stream.codec_context.thread_count = 1
        for frame in frames: out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')))
        out.mux(stream.encode())
    put(root/'labels'/'train.json', [dict(id='78687', label=said, template=said.replace(what, '[something]').capitalize(), placeholders=[what])])


def epic(root, film: Path, said, start='00:00:01.14', stop='00:00:04.37'):
    put(root/'EPIC-KITCHENS'/'P01'/'videos'/'P01_01.MP4', film.read_bytes())
    verb, _, noun = said.partition(' ')
    row = dict(narration_id='P01_01_0', participant_id='P01', video_id='P01_01', narration_timestamp='00:00:01.089', start_timestamp=start, stop_timestamp=stop,
               start_frame=34, stop_frame=131, narration=said, verb=verb, verb_class=3, noun=noun, noun_class=3, all_nouns=f"['{noun}']", all_noun_classes='[3]')
    path = root/'epic-kitchens-100-annotations'/'EPIC_100_train.csv'; path.parent.mkdir(parents=True)
    with open(path, 'w', newline='') as f: out = csv.DictWriter(f, row); out.writeheader(); out.writerow(row)


def ego4d(root, film: Path, said, at_s=3., uid='001e3e4e-2743-47fc-8564-d5efd11f9e90'):
    put(root/'v2'/'full_scale'/f'{uid}.mp4', film.read_bytes())
    told = dict(timestamp_sec=at_s, timestamp_frame=round(30 * at_s), narration_text=f'#C C {said}', annotation_uid='a7f0')
    put(root/'v2'/'annotations'/'narration.json', {uid: dict(narration_pass_1=dict(narrations=[told], summaries=[]), status='complete')})


def egodex(root, episodes, task='push_disc', fps=30, focal=100.):
    "The disc is the right hand, half a metre in front of a camera that stands still; every other joint stays behind the camera."
    import h5py
    from motionvla.annotations import HANDS
    from motionvla.video import write_video
    for i, e in enumerate(episodes):
        (n, h, w, _), path = e['pictures'].shape, root/task/f'{i}.hdf5'; path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, 'w') as f:
            f['camera/intrinsic'] = np.array([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1]], np.float32)
            pose = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
            for joint in ('camera', *HANDS):
                here = pose.copy(); here[:, :3, 3] = [0, 0, 0] if joint == 'camera' else [0, 0, -1]
                if joint == 'rightHand': here[:, :3, 3] = np.stack([e['place'][:, 0] * 400 / focal / 2, -e['place'][:, 2] * 400 / focal / 2, np.full(n, .5)], 1)
                f[f'transforms/{joint}'] = here
                if joint != 'camera': f[f'confidences/{joint}'] = np.full(n, .9, np.float32)
            f.attrs.update(llm_type='neither', llm_description=e['said'], task=task)
        write_video(path.with_suffix('.mp4'), e['pictures'], fps)


# --- robots -----------------------------------------------------------------------------------------------------------------------------

def as_clips(episodes):
    from motionvla.lerobot import array_clip
    names = ['dx', 'dy', 'dz', 'droll', 'dpitch', 'dyaw', 'gripper']
    return [array_clip(f'{i}', e['said'], dict(front=e['pictures']), HZ, e['place'], moves(e), ['x', 'y', 'z'], names, ['m'] * 3, ['m'] * 3 + ['rad'] * 3 + [''])
            for i, e in enumerate(episodes)]


def lerobot_v3(root, episodes, **options):
    from motionvla.lerobot import write_lerobot
    return write_lerobot(as_clips(episodes), root, robot_type='disc', **options)


def lerobot_v21(root, episodes):
    import pyarrow.parquet as pq
    from motionvla.lerobot import number_columns, picture_feature, signal_feature, to_table
    from motionvla.video import write_video
    clips, start = as_clips(episodes), 0; (root/'data'/'chunk-000').mkdir(parents=True)
    features = {'observation.images.front': picture_feature(*episodes[0]['pictures'].shape[1:3], HZ), 'observation.state': signal_feature(clips[0].state),
                'action': signal_feature(clips[0].action)}
    features |= {k: dict(dtype='float32' if k == 'timestamp' else 'int64', shape=[1], names=None) for k in ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')}
    for i, c in enumerate(clips):
        columns = number_columns(i, start, i, c.stamps(), {'observation.state': c.state.values, 'action': c.action.values}); start += c.n_frames
        pq.write_table(to_table(columns), root/'data'/'chunk-000'/f'episode_{i:06d}.parquet')
        write_video(root/'videos'/'chunk-000'/'observation.images.front'/f'episode_{i:06d}.mp4', c.pictures['front'], HZ)
    lines = lambda rows: ''.join(json.dumps(r) + '\n' for r in rows)
    put(root/'meta'/'episodes.jsonl', lines(dict(episode_index=i, tasks=[c.instruction], length=c.n_frames) for i, c in enumerate(clips)))
    put(root/'meta'/'tasks.jsonl', lines(dict(task_index=i, task=c.instruction) for i, c in enumerate(clips)))
    put(root/'meta'/'info.json', dict(
        codebase_version='v2.1', robot_type='disc', total_episodes=len(clips), total_frames=start, total_tasks=len(clips), total_chunks=1, total_videos=len(clips),
        chunks_size=1000, fps=HZ, splits=dict(train=f'0:{len(clips)}'), features=features,
        data_path='data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
        video_path='videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'))


def rlds(root, episodes, name='disc'):
    "root/NAME/1.0.0 as TensorFlow Datasets writes it; the rate stands nowhere."
    from motionvla.rlds import write_example, write_records
    tensor = dict(tensor=dict(shape=dict(dimensions=['7']), dtype='float32', encoding='none'))
    h, w = episodes[0]['pictures'].shape[1:3]; at = root/name/'1.0.0'
    image = dict(image=dict(shape=dict(dimensions=[str(h), str(w), '3']), dtype='uint8', encodingFormat='jpeg'))
    step = dict(action=tensor, language_instruction=dict(text={}), observation=dict(featuresDict=dict(features=dict(state=tensor, image=image))))
    put(at/'features.json', dict(featuresDict=dict(features=dict(steps=dict(sequence=dict(length='-1', feature=dict(featuresDict=dict(features=step))))))))
    def record(e):
        n = len(e['place'])
        return write_example({'steps/action': moves(e), 'steps/observation/state': np.concatenate([e['place'], np.zeros((n, 3)), moves(e)[:, -1:]], 1),
                              'steps/observation/image': [jpeg(p) for p in e['pictures']], 'steps/language_instruction': [e['said']] * n})
    return write_records(at/f'{name}-train.tfrecord-00000-of-00001', [record(e) for e in episodes])


def hdf5_demo(f, i, arrays):
    for k, v in arrays.items(): f.create_dataset(f'data/demo_{i}/{k}', data=v)
    f[f'data/demo_{i}'].attrs.update(num_samples=len(arrays['actions']), model_file='<mujoco/>', init_state=np.zeros(79))


def libero(path, episodes, **attributes):
    "Stored from the bottom up, each picture one step after the action of its row."
    import h5py
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w') as f:
        f.create_group('data').attrs.update({**dict(
            env_name='Libero_Tabletop_Manipulation', macros_image_convention='opengl', bddl_file_name='a.bddl', num_demos=len(episodes),
            total=sum(len(e['place']) for e in episodes),
            problem_info=json.dumps(dict(problem_name='tabletop', domain_name='robosuite', language_instruction=episodes[0]['said'])),
            env_args=json.dumps(dict(type=1, env_name='Libero', env_kwargs=dict(control_freq=20, controller_configs=CONTROLLER)))), **attributes})
        for i, e in enumerate(episodes):
            n, up = len(e['place']), e['pictures'][:, ::-1]
            hdf5_demo(f, i, {'obs/agentview_rgb': up, 'obs/eye_in_hand_rgb': up, 'obs/ee_states': np.concatenate([e['place'], np.zeros((n, 3))], 1), 'obs/ee_pos': e['place'],
                             'obs/ee_ori': np.zeros((n, 3)), 'obs/gripper_states': np.tile([.04, -.04], (n, 1)), 'obs/joint_states': np.zeros((n, 7)), 'actions': moves(e),
                             'states': np.zeros((n, 79)), 'robot_states': np.zeros((n, 9)), 'rewards': np.zeros(n, np.uint8), 'dones': np.zeros(n, np.uint8)})
    return path


def robomimic(path, episodes):
    import h5py
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w') as f:
        f.create_group('data').attrs.update(total=sum(len(e['place']) for e in episodes), env_args=json.dumps(
            dict(env_name='Lift', type=1, env_kwargs=dict(control_freq=20, robots=['Panda'], controller_configs=CONTROLLER), lang=episodes[0]['said'])))
        for i, e in enumerate(episodes):
            n = len(e['place'])
            hdf5_demo(f, i, {'obs/agentview_image': e['pictures'], 'obs/robot0_eye_in_hand_image': e['pictures'], 'obs/robot0_eef_pos': e['place'],
                             'obs/robot0_eef_quat': np.tile([1., 0, 0, 0], (n, 1)), 'obs/robot0_gripper_qpos': np.tile([.04, -.04], (n, 1)), 'obs/object': np.zeros((n, 14)),
                             'actions': moves(e), 'states': np.zeros((n, 45)), 'rewards': np.zeros(n), 'dones': np.zeros(n, int)})
        f['mask/train'] = np.array([f'demo_{i}'.encode() for i in range(len(episodes))])
    return path


def robotwin(root, episodes, marked=False):
    "`marked`: the newer form, RGB with a mark; the older one has red and blue exchanged in the JPEG. The place is told by the first and third joint."
    import h5py
    for i, e in enumerate(episodes):
        path = root/'push_disc'/'demo_clean'/'data'/f'episode{i}.hdf5'; path.parent.mkdir(parents=True, exist_ok=True); n = len(e['place'])
        encoded = [jpeg(p if marked else p[..., ::-1]) for p in e['pictures']]
        if marked: encoded = [d[:20] + b'\xff\xfe\x00\x0aXPL-RGB1' + d[20:] for d in encoded]
        width = max(map(len, encoded)); joints = np.concatenate([e['place'], np.zeros((n, 3))], 1)
        with h5py.File(path, 'w') as f:
            for c in ('front_camera', 'head_camera', 'left_camera'): f[f'observation/{c}/rgb'] = np.array([d.ljust(width, b'\0') for d in encoded], f'S{width}')
            for s in ('left', 'right'):
                f[f'joint_action/{s}_arm'], f[f'joint_action/{s}_gripper'] = joints, np.linspace(1, 0, n)
                f[f'endpose/{s}_endpose'] = np.concatenate([e['place'], np.tile([1., 0, 0, 0], (n, 1))], 1); f[f'endpose/{s}_gripper'] = np.linspace(1, 0, n)
            f['joint_action/vector'] = np.zeros((n, 14))
        put(path.parent.parent/'instructions'/f'{path.stem}.json', dict(seen=[e['said']], unseen=[f'please {e["said"]}']))


def umi(path, episodes):
    "All episodes one after the other in arrays of a zarr folder (format 2)."
    import zarr
    from imagecodecs.numcodecs import Jpegxl
    pictures, place = (np.concatenate([e[k] for e in episodes]) for k in ('pictures', 'place'))
    group = zarr.open_group(str(path), mode='w', zarr_format=2)
    group.create_array('data/camera0_rgb', shape=pictures.shape, chunks=(1, *pictures.shape[1:]), dtype='u1', compressors=Jpegxl(level=99))[:] = pictures
    for name, v in dict(eef_pos=place, eef_rot_axis_angle=np.full_like(place, .01), gripper_width=np.full((len(place), 1), .05), demo_start_pose=np.full((len(place), 6), .01)).items():
        group.create_array(f'data/robot0_{name}', data=v.astype(np.float32), chunks=v.shape)
    group.create_array('meta/episode_ends', data=np.cumsum([len(e['place']) for e in episodes]))
    return path


def zipped(store):
    "A zarr folder as one .zarr.zip, which takes its place."
    with zipfile.ZipFile(f'{store}.zip', 'w', zipfile.ZIP_STORED) as z:
        for p in sorted(store.rglob('*')): p.is_file() and z.write(p, p.relative_to(store).as_posix())
    shutil.rmtree(store)
    return Path(f'{store}.zip')
