"Clips of the tabletop by the command: killed and gone on with, the same bytes for any number of processes, wrong words told."
import json, signal, subprocess, time

import numpy as np, psutil, pytest
from conftest import BIN, environment, motionvla

SMALL = ['world', '--body', 'franka', '--n', 5, '--image-px', 64, '--seed', 3, '--wrist']


@pytest.fixture(scope='module')
def clips_of_one(tmp_path_factory):
    "Five clips by one process, without a stop."
    out = tmp_path_factory.mktemp('world')/'one'
    done = motionvla(*SMALL, '--workers', 1, '--out', out)
    assert done.returncode == 0, done.stdout[-3000:]
    return out


def numbers(out): return {p.name: p.read_bytes() for p in [*out.glob('*.parquet'), *out.glob('*.jsonl'), out/'features.json', *sorted((out/'truth').glob('*.npz'))]}


def test_killed_and_gone_on_with_two_processes(clips_of_one, tmp_path):
    "SIGKILL after the first clips; the same command ends with the same numbers, and keeps what was there."
    out = tmp_path/'two'
    process = subprocess.Popen([BIN/'motionvla', *map(str, SMALL), '--workers', '2', '--out', out], env=environment(), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob('.parts/*.json'))) < 2: assert process.poll() is None; time.sleep(.05)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for p in family:
        try: p.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess: pass
    process.wait(30); psutil.wait_procs(family, 30)
    kept = {p: p.stat().st_mtime_ns for p in out.glob('.parts/*.json')}
    assert 2 <= len(kept) < 5 and not (out/'trajectories.parquet').exists()
    done = motionvla(*SMALL, '--workers', 2, '--out', out)
    assert done.returncode == 0 and '5 clips' in done.stdout, done.stdout[-3000:]
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert numbers(out) == numbers(clips_of_one)


def test_what_is_in_it(clips_of_one):
    from motionvla.datasets import open_dataset
    from motionvla.tasks import ONE_ARM
    from motionvla.video import video_info
    rows = [json.loads(line) for line in (clips_of_one/'clips.jsonl').read_text().splitlines()]
    assert [r['verb'] for r in rows] == list(ONE_ARM[:5]) and all(r['instruction'] for r in rows)
    for r in rows:
        head, wrist = (video_info(clips_of_one/f) for f in (r['file'], r['file'].replace('.mp4', '_wrist.mp4')))
        with np.load(clips_of_one/r['file'].replace('clips', 'truth').replace('mp4', 'npz')) as truth: steps = len(truth['time_s'])
        assert head.n_frames == wrist.n_frames == r['n_frames'] == steps
    assert len(open_dataset(clips_of_one)) >= 5   # what we make, we read


@pytest.mark.parametrize('words, said', [
    (['--body', 'octopus'], "no body 'octopus'"), (['--task', 'juggle'], "no task 'juggle'"), (['--body', 'hand', '--task', 'hand over'], 'takes two arms'),
    (['--fps', 25], 'frames a second, not 25')], ids=lambda x: ' '.join(map(str, x)) if isinstance(x, list) else None)
def test_wrong_words(tmp_path, words, said):
    done = motionvla('world', '--n', 1, '--out', tmp_path/'out', *words)
    assert done.returncode == 2 and said in done.stdout and len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert not (tmp_path/'out'/'clips').exists()

@pytest.mark.parametrize('body', ['hand', 'left_hand', 'two_hands', 'franka', 'fetch', 'two_franka'])
def test_a_picture_does_not_depend_on_what_was_drawn_before(body):
    "A renderer keeps lamps, textures and clutter from scene to scene: each scene must set all of them."
    from motionvla.scenes import sample_scene
    from motionvla.splits import SHOWN
    from motionvla.tabletop import Tabletop
    from motionvla.tasks import ONE_ARM, sample_task
    scenes = []
    for i in range(24):
        rng = np.random.default_rng([5, i]); task = sample_task(rng, ONE_ARM[i % len(ONE_ARM)], tuple(SHOWN['human']))
        scenes.append(sample_scene(rng, task, body, wild=i % 4 / 3))
    looks = [s.looks for s in scenes]
    for what in ({len(l['lights']) for l in looks}, {bool(l['mover']) for l in looks}, {bool(l['clutter']) for l in looks}): assert len(what) > 1  # both kinds are among them
    def drawn(order):
        env, out = None, {}
        for i in order:
            if env is None: env = Tabletop(scenes[i], image_px=64)
            else: env.reset(scenes[i])
            out[i] = [env.render(camera) for camera in env.cameras()] + [env.body_mask()]
        env.close()
        return out
    first, again = drawn(range(24)), drawn([*range(23, -1, -1)])
    for i in range(24):
        for a, b in zip(first[i], again[i]): assert np.array_equal(a, b), f'scene {i}'
