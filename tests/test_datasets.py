"Readers and pair indices under damage: whatever lies in a folder, an item is used whole, or set aside with one sentence, and the rest goes on."
import csv, io, json, pickle
from pathlib import Path

import numpy as np
import pytest

import layouts
from motionvla.datasets import (Clip, DataError, Dataset, PairFrames, Running, Signal, check_signal, check_text, collate_pairs,
                                dataset_statistics, open_dataset, open_pairs, pair_index, read_rows, safe_path, statistics, video_clip,
                                write_quarantine)
from motionvla.video import write_video


def square(n=24, side=64):
    "A light square that moves over a dark ground."
    for i in range(n):
        frame = np.full((side, side, 3), 40, np.uint8); frame[20:36, i:i + 16] = 220
        yield frame


@pytest.fixture(scope='module')
def film(tmp_path_factory): return write_video(tmp_path_factory.mktemp('film')/'film.mp4', square(), 12)


def one_sentence(reason): return isinstance(reason, str) and 5 < len(reason) < 500 and '\n' not in reason and 'Traceback' not in reason


def goes_through(data, size=16):
    "Opens every clip and reads its first, middle and last frame; returns used keys and reasons."
    used = []
    for clip in data:
        try: frames = clip.frames([0, clip.duration_s / 2, clip.duration_s], size)
        except DataError as e: assert one_sentence(str(e)); continue  # damage inside a frame shows when it is decoded
        assert frames.shape == (3, size, size, 3) and frames.dtype == np.uint8 and clip.stamps()[0] == 0 and len(clip.stamps()) == clip.n_frames
        used.append(clip.clip)
    assert all(one_sentence(row['reason']) for row in data.quarantine), data.quarantine
    return used, {row['clip']: row['reason'] for row in data.quarantine}


# --- paths, text, numbers -------------------------------------------------------------------------------------------------------------

def test_paths_never_leave_the_root(tmp_path):
    root = tmp_path/'data'; (root/'in').mkdir(parents=True); (tmp_path/'secret').write_text('x')
    (root/'out').symlink_to(tmp_path); (root/'loop').symlink_to(root/'loop'); (root/'ok').symlink_to(root/'in')
    rng, parts = np.random.default_rng(0), ['..', '.', 'in', 'out', 'ok', 'loop', '', 'a b', '~', '\0', 'é', '..\\', 'secret', 'x' * 300]
    inside = 0
    for _ in range(400):
        words = '/'.join(rng.choice(parts, rng.integers(1, 6)))
        try: path = safe_path(root, words)
        except DataError as e: assert one_sentence(str(e)); continue
        inside += 1
        assert path.resolve().is_relative_to(root.resolve()), words
    assert inside > 20
    for wrong in ('../secret', 'out/secret', '/etc/passwd', str(tmp_path/'secret'), 'in/../../secret', '', '  '):
        with pytest.raises(DataError): safe_path(root, wrong)
    assert safe_path(root, 'ok/x') == root/'ok'/'x'


def test_text():
    assert check_text(b' a\tb\n', 't') == 'a b' and check_text(None, 't') == '' and check_text('ä', 't') == 'ä'
    for wrong in (b'\xff\xfe', 'a\udcffb', '\ud800'):
        with pytest.raises(DataError, match='UTF-8'): check_text(wrong, 't')
    for blank in ('', ' \n', None, b''):
        with pytest.raises(DataError, match='empty'): check_text(blank, 't', empty=False)


def test_signals():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, d = rng.integers(1, 9), rng.integers(1, 4)
        good = Signal(np.cumsum(rng.uniform(.01, 1, n)), rng.normal(size=(n, d)), list('xyz'[:d]), ['m'] * d)
        assert check_signal(good, 's').values.dtype == np.float32
        time, values, names, units = good.time_s.copy(), good.values.copy(), good.names, good.units
        fault = rng.integers(0, 6)
        if fault == 0: values[rng.integers(n), rng.integers(d)] = rng.choice([np.nan, np.inf, -np.inf])
        elif fault == 1: time = np.append(time, time[-1] + 1)
        elif fault == 2: names = names + ['w']
        elif fault == 3: time[rng.integers(n)] = np.nan
        elif fault == 4: values = values[:, 0]
        elif n > 1: k = rng.integers(1, n); time[k:] -= time[k] - time[k - 1] + rng.choice([0, .5])
        else: continue
        with pytest.raises(DataError): check_signal(Signal(time, values, names, units), 's')


# --- tables ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('suffix', ['.csv', '.jsonl', '.json'])
def test_tables_of_noise(tmp_path, suffix):
    rng, path = np.random.default_rng(1), tmp_path/f'table{suffix}'
    lines = [dict(file=f'{i}.mp4', instruction=f'do "{i}", ünd so') for i in range(6)]
    out = io.StringIO(newline=''); table = csv.DictWriter(out, lines[0]); table.writeheader(); table.writerows(lines)
    whole = {'.csv': out.getvalue(), '.jsonl': '\n'.join(map(json.dumps, lines)), '.json': json.dumps(lines)}[suffix].encode()
    path.write_bytes(whole); rows, bad = read_rows(path)
    assert [r for _, r in rows] == lines and not bad
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 6)): content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(bytes(content[:rng.integers(1, len(content) + 1)]))
        try: rows, bad = read_rows(path)
        except DataError as e: assert one_sentence(str(e)); continue
        assert all(isinstance(r, dict) for _, r in rows) and all(isinstance(why, str) for _, why in bad)
    path.write_bytes(b'[' * 100_000)
    if suffix != '.csv':
        try: rows, bad = read_rows(path); assert not rows and bad
        except DataError: pass


def test_a_bad_line_costs_one_clip(tmp_path, film):
    for name in 'abc': (tmp_path/f'{name}.mp4').write_bytes(film.read_bytes())
    (tmp_path/'instructions.csv').write_bytes(b'file,instruction\na.mp4,go\nb.mp4,\xff\nb.mp4,again\nc.mp4\n')
    data = open_dataset(tmp_path); used, reasons = goes_through(data)
    assert used == ['a', 'c'] and data.open('a').instruction == 'go' and data.open('c').instruction == ''  # c's line was cut off: c has no instruction
    assert 'UTF-8' in reasons['b'] and 'second time' in reasons['instructions.csv:4'] and 'columns' in reasons['instructions.csv:5']
    write_quarantine(data, tmp_path/'quarantine.jsonl')
    assert [json.loads(line)['clip'] for line in (tmp_path/'quarantine.jsonl').read_text().splitlines()] == [r['clip'] for r in data.quarantine]


def test_empty_instructions_may_be_allowed(tmp_path, film):
    (tmp_path/'a.mp4').write_bytes(film.read_bytes()); (tmp_path/'instructions.jsonl').write_text('{"clip": "a", "instruction": ""}\n')
    assert not list(open_dataset(tmp_path)) and [c.instruction for c in open_dataset(tmp_path, empty=True)] == ['']


def test_a_data_set_that_is_none(tmp_path):
    for root, kind in ((tmp_path/'gone', 'auto'), (tmp_path, 'auto'), (tmp_path, 'folder'), (tmp_path, 'ssv2'), (tmp_path, 'epic'), (tmp_path, 'ego4d'),
                       (tmp_path, 'egodex'), (tmp_path, 'nonsense')):
        with pytest.raises(DataError) as e: open_dataset(root, kind)
        assert '\n' not in str(e.value)
    with pytest.raises(DataError, match='columns'):
        (tmp_path/'instructions.csv').write_text('video,text\na,b\n'); open_dataset(tmp_path, 'folder')


# --- videos ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi', '.webm', '.mov'])
def test_damaged_videos(tmp_path, suffix):
    import av
    whole = tmp_path/f'whole{suffix}'
    with av.open(str(whole), 'w') as out:
        stream = out.add_stream({'.webm': 'libvpx-vp9', '.avi': 'mpeg4'}.get(suffix, 'libx264'), rate=12)
        stream.width = stream.height = 64; stream.pix_fmt = 'yuv420p'; stream.options = {'deadline': 'realtime', 'cpu-used': '8'} if suffix == '.webm' else {}
        for frame in square(): out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        out.mux(stream.encode())
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    for k, share in enumerate((0, .02, .3, .6, .9)): (tmp_path/f'cut{k}{suffix}').write_bytes(content[:int(share * len(content))])
    for k in range(6):
        hurt = bytearray(content)
        for at in rng.integers(0, len(hurt), 12): hurt[at] = rng.integers(256)
        (tmp_path/f'hurt{k}{suffix}').write_bytes(bytes(hurt))
    used, reasons = goes_through(open_dataset(tmp_path))
    assert 'whole' in used and {f'cut{k}' for k in range(4)} <= set(reasons), (used, reasons)


def test_segments(film):
    whole = video_clip('whole', {'': film}); stamps = whole.stamps()
    rng = np.random.default_rng(0)
    for _ in range(60):
        start, stop = np.sort(rng.uniform(-.3, 3.5, 2)) if rng.random() < .8 else rng.uniform(-1, 4, 2)
        try: part = video_clip('part', {'': film}, start_s=start, stop_s=stop)
        except DataError as e: assert start < 0 or stop <= start or start > stamps[-1] or stop > stamps[-1] + .5; continue
        first = part.videos[''][2]
        assert abs(stamps[first] - start) <= .5 / 12 + 1e-6 and 1 <= part.n_frames and part.duration_s <= stop - start + 1 / 12
        at = rng.uniform(0, part.duration_s)
        assert (part.frames([at], 32) == whole.frames([stamps[first] + at], 32)).all()
        assert (part.frames([at + 99], 32) == whole.frames([stamps[first + part.n_frames - 1]], 32)).all()


def test_cameras(film, tmp_path):
    short = write_video(tmp_path/'short.mp4', square(12), 12)
    two = video_clip('two', {'head': film, 'wrist': film})
    assert two.cameras == ('head', 'wrist') and (two.frames([1.], 32) == two.frames([1.], 32, 'wrist')).all()
    with pytest.raises(DataError, match="no camera 'left'"): two.frames([0], 32, 'left')
    with pytest.raises(DataError, match='12 frames'): video_clip('uneven', {'head': film, 'wrist': short})


# --- annotations ----------------------------------------------------------------------------------------------------------------------

def mutations(value, rng, depth=0):
    "The same JSON with one thing in it replaced or taken away."
    strange = [None, '', -1, 1e300, float('nan'), [], {}, 'x' * 50, '../..', True, 'a\ud800']
    if isinstance(value, dict) and value and rng.random() < .9:
        key = rng.choice(list(value)); out = dict(value)
        if rng.random() < .2: del out[key]
        else: out[key] = mutations(value[key], rng, depth + 1)
        return out
    if isinstance(value, list) and value and rng.random() < .9:
        out = list(value); k = rng.integers(len(out)); out[k] = mutations(out[k], rng, depth + 1)
        return out
    return strange[rng.integers(len(strange))]


@pytest.mark.parametrize('kind', ['ssv2', 'ego4d', 'fho_main'])
def test_strange_annotations(tmp_path, film, kind):
    rng, uid, options = np.random.default_rng(2), 'b1e5f0aa-0000-4000-8000-1d2c3b4a5f60', {}
    if kind == 'ssv2':
        (tmp_path/'20bn-something-something-v2').mkdir(); (tmp_path/'20bn-something-something-v2/1.webm').write_bytes(film.read_bytes())
        table, good = tmp_path/'labels/train.json', [dict(id='1', label='push it', template='Push [something]', placeholders=['it'])] * 2
    else:
        (tmp_path/'v2/full_scale').mkdir(parents=True); (tmp_path/f'v2/full_scale/{uid}.mp4').write_bytes(film.read_bytes())
        table, options = tmp_path/f'v2/annotations/{"narration" if kind == "ego4d" else kind}.json', dict(source='narration' if kind == 'ego4d' else kind)
        good = {uid: {'narration_pass_1': {'narrations': [dict(timestamp_sec=1., narration_text='#C C lifts a #unsure', annotation_uid='u')], 'summaries': []}}}
        if kind == 'fho_main': good = dict(videos=[dict(video_uid=uid, annotated_intervals=[dict(narrated_actions=[
            dict(start_sec=.2, end_sec=1.5, narration_text='#C C lifts it', is_valid_action=True, is_rejected=False)])])])
    table.parent.mkdir(parents=True, exist_ok=True)
    whole = 0
    for k in range(80):
        found = good if k == 0 else mutations(good, rng)
        table.write_text(json.dumps(found))
        try: data = open_dataset(tmp_path, 'ego4d' if kind == 'fho_main' else kind, **options)
        except DataError as e: assert one_sentence(str(e)) and k; continue
        used, reasons = goes_through(data); whole += bool(used)
        json.dumps(data.quarantine)
        assert used or k
    assert whole


def test_strange_epic(tmp_path, film):
    (tmp_path/'P01/videos').mkdir(parents=True); (tmp_path/'P01/videos/P01_01.MP4').write_bytes(film.read_bytes())
    head = 'narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration'
    rows = {'P01_01_0,P01,P01_01,00:00:00.20,00:00:01.50,open door': '', 'P01_01_1,P01,P01_01,00:00:01.50,00:00:00.20,open door': 'before its start',
            'P01_01_2,P01,P01_01,nan,00:00:01.50,open door': 'not a time', 'P01_01_3,P01,../P01_01,00:00:00.20,00:00:01.50,x': 'no video',
            'P01_01_4,P01,P01_01,00:00:00.20,00:99:01.50,x': 'not a time', 'P01_01_5,P01,P01_01,01:00:00,01:00:01,x': 'long',
            'P01_01_6,P01,P01_01,00:00:00,00:00:01,': 'empty'}
    (tmp_path/'EPIC_100_train.csv').write_text('\n'.join([head, *rows]) + '\n')
    used, reasons = goes_through(open_dataset(tmp_path))
    assert used == ['P01_01_0'] and all(why in reasons[row.split(',')[0]] for row, why in rows.items() if why)


def test_damaged_egodex(tmp_path, film):
    h5py = pytest.importorskip('h5py')
    from motionvla.annotations import HANDS
    task = tmp_path/'task'; task.mkdir(); rng = np.random.default_rng(3)
    def put(name, change=lambda f: None):
        with h5py.File(task/f'{name}.hdf5', 'w') as f:
            f['camera/intrinsic'] = np.array([[700, 0, 32], [0, 700, 32], [0, 0, 1]], np.float32)
            for j in ('camera', *HANDS): f[f'transforms/{j}'] = np.tile(np.eye(4, dtype=np.float32), (24, 1, 1))
            f.attrs['llm_type'], f.attrs['llm_description'] = 'neither', 'Fold it.'
            change(f)
        (task/f'{name}.mp4').write_bytes(film.read_bytes())
    def replaced(key, value):
        def change(f): del f[key]; f[key] = value
        return change
    put('good')
    faults = {'key': (lambda f: f.__delitem__('transforms/rightHand'), 'missing'), 'group': (lambda f: f.__delitem__('transforms'), 'missing'),
              'flat': (replaced('transforms/leftHand', np.zeros((24, 16))), 'shape'), 'few': (replaced('transforms/leftHand', np.zeros((9, 4, 4))), 'shape'),
              'words': (replaced('camera/intrinsic', np.array([b'x'])), 'plain numbers'), 'link': (replaced('camera/intrinsic', h5py.ExternalLink('x.h5', 'y')), 'link'),
              'soft': (replaced('camera/intrinsic', h5py.SoftLink('/transforms')), 'link'),
              'nan': (replaced('camera/intrinsic', np.full((3, 3), np.nan)), 'not a number'),
              'pose': (replaced('transforms/camera', np.zeros((24, 4, 4))), 'not a pose')}
    for name, (change, _) in faults.items(): put(name, change)
    whole = (task/'good.hdf5').read_bytes()
    for k in range(25):
        hurt = bytearray(whole)
        for at in rng.integers(0, len(hurt) if k % 2 else 4000, 8): hurt[at] = rng.integers(256)
        (task/f'hurt{k}.hdf5').write_bytes(bytes(hurt[:rng.integers(100, len(hurt))] if k % 3 == 0 else hurt)); (task/f'hurt{k}.mp4').write_bytes(film.read_bytes())
    used, reasons = goes_through(open_dataset(tmp_path, 'egodex'))
    assert 'task/good' in used and all(why in reasons[f'task/{name}'] for name, (_, why) in faults.items()), reasons


# --- batches --------------------------------------------------------------------------------------------------------------------------

class Faulty(Dataset):
    "Every second item breaks in another way."
    def __init__(self): self.root, self.quarantine = Path('/nowhere'), []
    def keys(self): return [f'{i}' for i in range(12)]
    def read(self, key):
        if int(key) % 2: raise [KeyError('x'), OSError(5, 'gone'), ValueError('two\nlines'), IndexError(), EOFError('end'), TypeError('t')][int(key) // 2]
        return Clip(key, '', 3., 10., 31)


def test_no_error_stops_a_batch(tmp_path):
    data = Faulty()
    for _ in range(2): assert len(list(data)) == 6 and len(data.quarantine) == 6 and all('\n' not in r['reason'] for r in data.quarantine)
    assert pair_index(data, 1., .5, tmp_path/'p.parquet')['quarantined'] == 6
    assert dataset_statistics(data, tmp_path/'statistics.json')['clips'] == 6 and json.loads((tmp_path/'statistics.json').read_text())['state'] == {'count': 0}


def test_statistics_of_any_batches():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n, d = rng.integers(1, 3000), rng.integers(1, 5)
        x = (rng.normal(size=(n, d)) * 10.**rng.integers(-3, 4, d) + rng.normal(size=d) * 100).astype(np.float32)
        cuts = np.sort(rng.integers(0, n + 1, rng.integers(0, 9)))
        batches = [b for b in np.split(x, cuts) if len(b)]
        stats = statistics(Signal(np.arange(len(b)), b, list('abcde'[:d]), [''] * d) for b in batches)
        assert np.allclose(stats['mean'], x.mean(0, dtype=float)) and np.allclose(stats['std'], x.std(0, dtype=float), atol=1e-9)
        assert all(np.allclose(q, np.quantile(x, float(k), axis=0)) for k, q in stats['quantiles'].items())
    small, x = Running(keep=100), rng.uniform(size=(20_000, 1))
    for b in np.array_split(x, 333): small.add(Signal(np.arange(len(b)), b, ['a'], ['']))
    assert small.rows.shape == (100, 1) and abs(small.summary()['quantiles']['0.5'][0] - .5) < .2
    with pytest.raises(DataError, match='do not match'): small.add(Signal([0], np.zeros((1, 1)), ['b'], ['']))
    assert statistics([]) == dict(count=0)


class Stamped(Dataset):
    def __init__(self, clips): self.root, self.clips, self.quarantine = Path('/nowhere'), clips, []
    def keys(self): return list(self.clips)
    def read(self, key): return self.clips[key]


class Uneven(Clip):
    def stamps(self): return self.notes['stamps']


@pytest.mark.parametrize('rows', [1, 50, 8192])
def test_pair_index_holds_every_pair(tmp_path, rows):
    from motionvla.video import frame_pairs
    rng, clips = np.random.default_rng(rows), {}
    for i in range(40):
        stamps = np.cumsum(rng.uniform(.02, .2, rng.integers(1, 60))); stamps -= stamps[0]
        clips[f'{i} ünd/x'] = Uneven(f'{i} ünd/x', '', stamps[-1], 10., len(stamps), notes=dict(stamps=stamps))
    wanted = {k: [c.stamps()[ix] for ix in frame_pairs(c.stamps(), 1., .3)] for k, c in clips.items()}
    wanted = {k: v for k, v in wanted.items() if len(v[0])}
    said = pair_index(Stamped(clips), 1., .3, tmp_path/'p.parquet', rows)
    pairs = pickle.loads(pickle.dumps(open_pairs(tmp_path/'p.parquet')))
    assert len(pairs) == said['pairs'] == sum(len(v[0]) for v in wanted.values()) and pairs.visits == said['clips'] == len(wanted)
    for i in rng.permutation(pairs.visits):
        clip, s, t = pairs.visit(i)
        assert clip == list(wanted)[i] and np.array_equal(s, wanted[clip][0]) and np.array_equal(t, wanted[clip][1])
    with pytest.raises(IndexError): pairs.visit(pairs.visits)


def test_an_index_that_fails_leaves_nothing(tmp_path):
    class Breaks(Stamped):
        def read(self, key): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): pair_index(Breaks({'a': 0}), 1., .1, tmp_path/'p.parquet')
    assert not list(tmp_path.iterdir())
    empty = pair_index(Stamped({}), 1., .1, tmp_path/'p.parquet')
    assert empty['pairs'] == 0 and len(open_pairs(tmp_path/'p.parquet')) == 0 == open_pairs(tmp_path/'p.parquet').visits
    for content in (b'', b'PAR1', (tmp_path/'p.parquet').read_bytes()[:40]):
        (tmp_path/'q.parquet').write_bytes(content)
        with pytest.raises(DataError): open_pairs(tmp_path/'q.parquet')


@pytest.mark.parametrize('workers', [0, 2])
def test_pair_frames_in_a_loader(tmp_path, film, workers):
    from torch.utils.data import DataLoader
    for name in 'abcd': (tmp_path/f'{name}.mp4').write_bytes(film.read_bytes())
    data = open_dataset(tmp_path); pair_index(data, 1., .25, tmp_path/'p.parquet', rows=4)
    (tmp_path/'c.mp4').write_bytes(b'gone')
    frames = PairFrames(data, open_pairs(tmp_path/'p.parquet'), size=32); frames[0]
    batches = list(DataLoader(frames, batch_size=2, num_workers=workers, collate_fn=collate_pairs, shuffle=False))
    assert [len(set(b['clips'])) for b in batches] == [2, 1] and [q['clip'] for b in batches for q in b['quarantine']] == ['c']
    clip = data.open('a')
    for b in batches:
        assert len(b['clips']) == len(b['times']) == len(b['frames'])
        for times, pair in zip(b['times'], b['frames']): assert (pair == clip.frames(times, 32)).all()


# --- a run ------------------------------------------------------------------------------------------------------------------------------

def square_episodes():
    "Three episodes that the flow finds a body in."
    from conftest import moving_square
    return [dict(pictures=moving_square(seed=i), place=np.linspace([0, 0, i], [.1, 0, .2 + i], 40), said=f'move the square {i}') for i in range(3)]


def folder_with_a_broken_video(root):
    for i, e in enumerate(square_episodes()): write_video(root/'some clips'/f'{i}.mp4', e['pictures'], 10)
    (root/'some clips/1.mp4').write_bytes((root/'some clips/1.mp4').read_bytes()[:2000])
    layouts.put(root/'instructions.csv', 'file,instruction\nsome clips/0.mp4,"move it, slowly"\n1.mp4,move it\nsome clips/2.mp4,move it again\n')
    return 'human/some clips/1', 'move it, slowly'


def lerobot_with_a_cut_video(root):
    layouts.lerobot_v3(root, square_episodes(), video_mb=.001)
    films = sorted(root.glob('videos/**/*.mp4')); assert len(films) == 3
    films[1].write_bytes(films[1].read_bytes()[:2000])
    return 'human/episode_000001', 'move the square 0'


def libero_with_nan(root):
    episodes = square_episodes(); episodes[1]['place'][7, 2] = np.nan
    layouts.libero(root/'SCENE1_move_the_square_demo.hdf5', episodes)
    return 'human/SCENE1_move_the_square_demo/demo_1', 'move the square 0'


def check_masks(run, bad, said):
    "Masks of the two good clips, the bad one in both quarantines."
    from motionvla.runs import read_jsonl, read_parquet
    for part in ('world/human', 'masks'):
        [aside] = read_jsonl(run/part/'quarantine.jsonl')
        assert aside['clip'] == bad and one_sentence(aside['reason']), aside
    pairs = read_parquet(run/'masks'/'pairs.parquet')
    assert len(set(pairs['clip'])) == 2 and bad not in pairs['clip'] and pairs['instruction'][0] == said
    assert np.abs(pairs['t_target_s'] - pairs['t_source_s'] - 1).max() < .11 and np.load(run/'masks'/'coverage.npy').any(1).all()
    return set(pairs['clip'])


@pytest.mark.parametrize('make', [folder_with_a_broken_video, lerobot_with_a_cut_video])
def test_masks_of_any_data_set(tmp_path, make):
    from motionvla.masks import ensure_masks
    from motionvla.runs import open_run
    bad, said = make(tmp_path/'data set')
    ensure_masks(open_run(tmp_path/'run', 'tiny', 0, dict(world=dict(videos=str(tmp_path/'data set'), robot=False))))
    check_masks(tmp_path/'run', bad, said)


def test_a_run_on_hdf5(tmp_path):
    "Three notebooks over clips that lie in no video file at all."
    from conftest import motionvla
    from motionvla.runs import read_parquet
    bad, said = libero_with_nan(tmp_path/'data set')
    done = motionvla('run', '--profile', 'tiny', '--videos', tmp_path/'data set', '--run-dir', tmp_path/'run', '--to-stage', '02_codebook', '--set', 'world.robot=false',
                     MOTIONVLA_TEST_DATA=str(tmp_path))
    assert done.returncode == 0 and '1 clip set aside' in done.stdout, done.stdout[-3000:]
    assert set(read_parquet(tmp_path/'run'/'codebook'/'labels.parquet')['clip']) == check_masks(tmp_path/'run', bad, said)


def test_a_run_without_a_good_clip_says_so(tmp_path):
    from motionvla.runs import open_run, read_jsonl
    from motionvla.world import ensure_world
    def world(run, **more): ensure_world(open_run(tmp_path/run, 'tiny', 0, dict(world=dict(videos=str(tmp_path/'mine'), robot=False, **more))))
    with pytest.raises(DataError, match='does not exist'): world('a')
    (tmp_path/'mine').mkdir()
    with pytest.raises(DataError, match='holds no videos'): world('b')
    (tmp_path/'mine/a.mp4').write_bytes(b'no video')
    with pytest.raises(DataError, match='none of the 1 clips.*cannot be opened'): world('c')
    assert [r['clip'] for r in read_jsonl(tmp_path/'c/world/human/quarantine.jsonl')] == ['human/a']
    with pytest.raises(DataError, match='fpz'): world('d', reader=dict(kind='folder', fpz=3))
    write_video(tmp_path/'mine/a.mp4', square(), 12); world('c')   # mended: the same run goes on
    assert [r['clip'] for r in read_jsonl(tmp_path/'c/world/human/clips.jsonl')] == ['human/a']


def test_rows_open_the_same_clips(tmp_path, film):
    "Whatever a reader gives, its line in a list of clips gives again: frames, times, words."
    from motionvla.datasets import list_clips, open_clip
    episodes = [layouts.disc_episode(phase=p, said=f'push it {p}') for p in (0., 2.)]
    layouts.folder(tmp_path/'folder', film, 'push it'); layouts.epic(tmp_path/'epic', film, 'push it', '00:00:00.50', '00:00:01.50'); layouts.ego4d(tmp_path/'ego4d', film, 'pushes it', 1.)
    layouts.egodex(tmp_path/'egodex', episodes); layouts.lerobot_v3(tmp_path/'v3', episodes); layouts.rlds(tmp_path/'rlds', episodes)
    layouts.robomimic(tmp_path/'robomimic/x.hdf5', episodes); layouts.robotwin(tmp_path/'robotwin', episodes); layouts.umi(tmp_path/'umi.zarr', episodes)
    roots = sorted(p for p in tmp_path.iterdir() if p.is_dir()); assert len(roots) == 9
    for root in roots:
        data = open_dataset(root, **(dict(fps=10) if root.name == 'rlds' else {}))
        rows, aside = list_clips(data, 'human'); assert rows and not aside, (root, aside)
        for row, clip in zip(json.loads(json.dumps(rows, default=str)), data, strict=True):
            back = open_clip(row); times = [clip.duration_s, .2, .2, 0, 99]
            assert back.clip == row['clip'] == f'human/{clip.clip}' and back.instruction == clip.instruction and back.fps == clip.fps
            assert np.allclose(back.stamps(), clip.stamps(), atol=1e-6) and np.array_equal(back.frames(times, 32), clip.frames(times, 32)), root
    rows, _ = list_clips(open_dataset(tmp_path/'robotwin'), camera='left_camera')
    assert open_clip(rows[0]).cameras[0] == 'left_camera'
    rows, aside = list_clips(open_dataset(tmp_path/'robotwin'), camera='nose'); assert not rows and 'no camera' in aside[0]['reason']


def test_links_and_bare_names(tmp_path, film):
    "A link in the folder is followed, a path in a table that leads out is not; a bare name means the one file of that name."
    root = tmp_path/'data'; (root/'a').mkdir(parents=True); (root/'b').mkdir(); (root/'linked.mp4').symlink_to(film); (tmp_path/'else').mkdir()
    (tmp_path/'else/x.mp4').write_bytes(film.read_bytes()); (root/'out').symlink_to(tmp_path/'else')
    for name in ('a/one.mp4', 'a/two.mp4', 'b/two.mp4'): (root/name).write_bytes(film.read_bytes())
    layouts.put(root/'instructions.csv', 'file,instruction,split\none.mp4,go,test\ntwo.mp4,stay,train\nlinked.mp4,follow,train\nout/x.mp4,leave,train\n../else/x.mp4,leave,train\n')
    used, reasons = goes_through(open_dataset(root))
    assert sorted(used) == ['a/one', 'a/two', 'b/two', 'linked'] and 'there are 2 of that name' in reasons['instructions.csv:3']
    assert all('leads out' in reasons[k] for k in ('out/x', '../else/x'))
    clip = open_dataset(root).open('a/one'); assert clip.instruction == 'go' and clip.notes['columns'] == dict(split='test')
    assert 'leads out' in goes_through(open_dataset(root, links=False))[1]['linked']
