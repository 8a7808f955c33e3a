"What the tests share: a whole run at the profile tiny, made once through the command line, and small videos made here."
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
#: tiny, with trainings long enough to be hit in their middle
SETTINGS = ['--profile', 'tiny', '--set', 'vqvae.steps=240', '--set', 'vqvae.save_every=20', '--set', 'vlm.steps=240', '--set', 'vlm.save_every=20',
            '--set', 'policy.steps=240', '--set', 'policy.save_every=20']


def pytest_collection_modifyitems(items):
    "The files that take longest come first: two workers, a file at a time, then end at about the same time."
    first = ['test_run.py', 'test_scale.py', 'test_labels.py']
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


def environment(**more): return dict(os.environ, OMP_NUM_THREADS='1', PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}', **more)


def motionvla(*words, cwd=ROOT, **more):
    "Runs the command and waits; returns the finished process with its output."
    return subprocess.run([BIN/'motionvla', *map(str, words)], cwd=cwd, env=environment(**more), text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)


def report_of(folder): return json.loads((Path(folder)/'report.json').read_text())


@pytest.fixture(scope='session')
def whole_run(tmp_path_factory):
    "An uninterrupted run of all six notebooks: (folder, what was printed)."
    folder = tmp_path_factory.mktemp('whole')/'run'
    done = motionvla('run', *SETTINGS, '--run-dir', folder)
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


def moving_square(n=40, side=96, seed=0):
    "`n h w 3`: a textured square that goes to and fro over a textured, still background."
    rng = np.random.default_rng(seed)
    back = np.kron(rng.integers(40, 160, (side//4, side//4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    hand = np.kron(rng.integers(120, 255, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    frames = np.repeat(back[None], n, 0)
    for t in range(n):
        x, y = (int(30 + 28*np.sin(a*t/n*2*np.pi + seed)) for a in (3, 2))
        frames[t, y:y + 32, x:x + 32] = hand
    return frames


@pytest.fixture(scope='session')
def clips(tmp_path_factory):
    "A folder of four good videos, one cut off in the middle and one without any motion."
    from motionvla.video import write_video
    folder = tmp_path_factory.mktemp('clips')
    for i in range(4): write_video(folder/f'good_{i}.mp4', moving_square(seed=i), 10)
    whole = folder/'whole.mp4'
    write_video(whole, moving_square(seed=9), 10)
    (folder/'truncated.mp4').write_bytes(whole.read_bytes()[:whole.stat().st_size//3]); whole.unlink()
    write_video(folder/'motionless.mp4', np.repeat(moving_square(1), 40, 0), 10)
    return folder
