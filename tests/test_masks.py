"Masks for volume, through the command: kills, crashes, any number of workers, and films that nobody would want."
import os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import psutil, pytest
from conftest import BIN, ROOT, environment, motionvla, moving_square

#: the command, with a shard after each clip and something that happens in the worker processes, which import this file too
PROGRAM = '''
import multiprocessing, os, pathlib, signal, time
import motionvla.mask_bulk as bulk
bulk.SAVE_S, real = 0., bulk.open_clip

def open_clip(row):
    if multiprocessing.parent_process(): {happens}
    return real(row)
bulk.open_clip = open_clip

if __name__ == '__main__':
    from motionvla.cli import app
    app()
'''
OPTIONS = ['--set', 'masks.flow_px=64', '--set', 'masks.sample_hz=5.0']


@pytest.fixture(scope='session')
def films(tmp_path_factory):
    "Eight good films of several lengths, one cut off, one without motion."
    from motionvla.video import write_video
    folder = tmp_path_factory.mktemp('films')
    for i in range(8): write_video(folder/f'good_{i}.mp4', moving_square(30 + 10 * i, seed=i), 10)
    (folder/'cut off.mp4').write_bytes((folder/'good_7.mp4').read_bytes()[:3000])
    write_video(folder/'still.mp4', np.repeat(moving_square(1), 40, 0), 10)
    return folder


def files(folder): return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}


def program(tmp_path, happens):
    path = tmp_path/'program.py'; path.write_text(PROGRAM.format(happens=happens))
    return [BIN/'python', path, 'masks']


@pytest.fixture(scope='session')
def undisturbed(films, tmp_path_factory):
    "The masks of one worker: (merged folder, what was printed)."
    out = tmp_path_factory.mktemp('alone')
    done = motionvla('masks', films, '--out', out/'masks', '--merged', out/'merged', '--workers', 1, '--pixels', *OPTIONS)
    assert done.returncode == 0, done.stdout
    return out/'merged', done.stdout


def test_the_last_line_tells(undisturbed, films):
    from motionvla.mask_store import open_masks, quarantined
    folder, said = undisturbed
    store, aside = open_masks(folder), quarantined(folder)
    assert store.clips == [f'good_{i}' for i in range(8)] and set(aside) == {'cut off', 'still'} and store.provenance['provider'] == 'flow'
    assert 'cut off' in aside['cut off'] and 'nothing to mask' in aside['still']
    last = said.strip().splitlines()[-1]
    assert last.startswith(f'8 clips, {store.n_frames} frames, 2 set aside, ') and ' frames/s, ' in last and '× real time: ' in last and '8/9 clips' in said or '9/9 clips' in said
    times, coverage, sure = store.of('good_3')
    assert np.allclose(np.diff(times), .2) and len(times) == 30 and store.frames('good_3').tolist() == list(range(0, 60, 2))
    assert store.pixels('good_3').mean() > .05 and sure.max() <= 1 and (coverage > 0).any()


def test_any_number_of_workers(undisturbed, films, tmp_path):
    done = motionvla('masks', films, '--out', tmp_path/'masks', '--merged', tmp_path/'merged', '--workers', 3, '--pixels', *OPTIONS)
    assert done.returncode == 0 and len(list((tmp_path/'masks').glob('*.parquet'))) > 1, done.stdout
    assert files(tmp_path/'merged') == files(undisturbed[0])
    again = motionvla('masks', films, '--out', tmp_path/'masks', '--merged', tmp_path/'merged', '--pixels', *OPTIONS)
    assert again.returncode == 0 and '0.0 frames/s' in again.stdout and files(tmp_path/'merged') == files(undisturbed[0])


def test_killed_in_the_middle(undisturbed, films, tmp_path):
    words = [films, '--out', tmp_path/'masks', '--merged', tmp_path/'merged', '--workers', '2', '--pixels', *OPTIONS]
    run = subprocess.Popen([*program(tmp_path, 'time.sleep(.3)'), *words], env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list((tmp_path/'masks').glob('*.parquet'))) < 2 and run.poll() is None and time.monotonic() < end: time.sleep(.05)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL); run.wait()
    assert len(children) >= 2 and psutil.wait_procs(children, timeout=10)[1] == [], 'workers end with their parent'
    from motionvla.mask_store import done
    there = done(tmp_path/'masks')
    assert 2 <= len(there) < 8 and not (tmp_path/'merged').exists()
    before = files(tmp_path/'masks')
    again = motionvla('masks', *words)
    assert again.returncode == 0 and files(tmp_path/'merged') == files(undisturbed[0]), again.stdout
    assert all(files(tmp_path/'masks').get(n) == b for n, b in before.items() if n.startswith('w')), 'what stood was not done again'


@pytest.mark.parametrize('happens, lost', [("row['clip'] == 'good_2' and os.kill(os.getpid(), signal.SIGKILL)", 'good_2'),
                                           ("(mark := pathlib.Path(__file__).with_name('mark')).exists() or (mark.touch(), os.kill(os.getpid(), signal.SIGKILL))", '')],
                         ids=['always the same clip', 'once'])
def test_a_worker_dies(undisturbed, films, tmp_path, happens, lost):
    from motionvla.mask_store import open_masks, quarantined
    done = subprocess.run([*program(tmp_path, happens), films, '--out', tmp_path/'masks', '--merged', tmp_path/'merged', '--workers', '2', '--pixels', *OPTIONS],
                          env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert done.returncode == 0, done.stdout
    if not lost: assert files(tmp_path/'merged') == files(undisturbed[0]); return
    assert open_masks(tmp_path/'merged').clips == [f'good_{i}' for i in range(8) if f'good_{i}' != lost]
    assert 'crashed the process that masked it, twice' in quarantined(tmp_path/'merged')[lost]


@pytest.mark.parametrize('words, said', [
    (['no/such/folder'], 'no/such/folder does not exist'),
    (['FILMS', '--provider', 'luck'], "no mask provider 'luck'"),
    (['FILMS', '--provider', 'file'], 'say where the masks lie'),
    (['FILMS', '--set', 'masks.sample_hz=0.0'], 'sample_hz must be'),
    (['FILMS', '--set', 'masks.flow_px=16'], 'flow_px must be 32 at least'),
], ids=lambda x: ' '.join(x) if isinstance(x, list) else None)
def test_wrong_words(films, tmp_path, words, said):
    done = motionvla('masks', *[films if w == 'FILMS' else w for w in words], '--out', tmp_path/'masks')
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 2 and said in done.stdout and len(lines) == 1, done.stdout
    assert not list(tmp_path.glob('masks/*.parquet')) and not list(tmp_path.glob('masks/quarantine*'))


def test_another_origin_is_refused(undisturbed, films):
    done = motionvla('masks', films, '--out', undisturbed[0], *OPTIONS, '--set', 'masks.grid=4')
    assert done.returncode == 2 and 'grid' in done.stdout and 'two folders' in done.stdout, done.stdout
