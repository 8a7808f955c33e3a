"Labels for volume, through the command: kills, crashes, any number of workers, a cluster, long films, and the labels of stage 02."
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import psutil, pytest
from conftest import BIN, ROOT, environment, motionvla, moving_square
from test_masks import files, ray_workers

#: the command, with a shard after each clip and something that happens in the worker processes, which import this file too
PROGRAM = '''
import multiprocessing, os, pathlib, signal, time
import motionvla.bulk, motionvla.labels as labels
motionvla.bulk.SAVE_S, real = 0., labels.open_clip

def open_clip(row):
    if multiprocessing.parent_process(): {happens}
    return real(row)
labels.open_clip = open_clip

if __name__ == '__main__':
    from motionvla.cli import app
    app()
'''


@pytest.fixture(scope='session')
def films(tmp_path_factory):
    "Eight good films of several lengths and sizes, one cut off, one shorter than a pair."
    from motionvla.video import write_video
    folder = tmp_path_factory.mktemp('films')
    for i in range(8): write_video(folder/f'good_{i}.mp4', moving_square(30 + 10*i, side=96 + 16*i, seed=i), 10)
    (folder/'cut off.mp4').write_bytes((folder/'good_7.mp4').read_bytes()[:3000])
    write_video(folder/'short.mp4', moving_square(6), 10)
    return folder


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    "A run at the profile tiny as far as its VQ-VAE."
    folder = tmp_path_factory.mktemp('labelled')/'run'
    done = motionvla('train', 'vqvae', '--profile', 'tiny', '--run-dir', folder, '--set', 'vqvae.steps=100')
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


CODES = '''
import sys
from motionvla.codebook import label_pairs
from motionvla.encoders import ensure_features
from motionvla.runs import read_parquet, reopen_run, write_parquet
from motionvla.vqvae import load_vqvae, told_motion
run = reopen_run(sys.argv[1], 'vqvae'); pairs = read_parquet(run.path/'masks'/'pairs.parquet')
model = load_vqvae(run); assert model.motion_input
codes = label_pairs(model, ensure_features(run), pairs['source'], pairs['target'], 64, body=told_motion(run, model, pairs['source'], pairs['target']))
write_parquet(sys.argv[2], {f'{k}{i}': c for k, some in zip('ab', codes) for i, c in enumerate(some.T)})
'''


@pytest.fixture(scope='session')
def undisturbed(films, trained, tmp_path_factory):
    "The labels of one worker: (merged folder, what was printed)."
    out = tmp_path_factory.mktemp('alone')
    done = motionvla('label', films, '--model', trained, '--out', out/'labels', '--merged', out/'merged', '--workers', 1)
    assert done.returncode == 0, done.stdout
    return out/'merged', done.stdout


def test_the_last_line_tells(undisturbed, trained):
    from motionvla.bulk import quarantined
    from motionvla.labels import open_labels
    folder, said = undisturbed
    store, aside = open_labels(folder), quarantined(folder)
    assert store.clips == [f'good_{i}' for i in range(8)] and set(aside) == {'cut off', 'short'} and 'shorter than a pair' in aside['short'] and 'cut off' in aside['cut off']
    last = said.strip().splitlines()[-1]
    assert last.startswith(f'8 clips, {store.n_rows} pairs, 2 set aside, ') and ' pairs/s, ' in last and ' hours of video a core-hour: ' in last
    made = json.loads((trained/'vqvae'/'config.json').read_text())
    for key, section in (('encoder', 'vqvae'), ('image_px', 'vqvae'), ('gap_s', 'masks'), ('pair_every_s', 'masks')): assert store.provenance[key] == made[section][key]
    times, action, background = store.of('good_3')
    assert action.shape == background.shape == (len(times), 4) and np.allclose(np.diff(times, axis=1), 1.) and np.allclose(np.diff(times[:, 0]), .2) and 0 <= action.min() <= action.max() < 16
    assert len({int(c) for clip in store for c in store.of(clip)[1].ravel()}) > 1


def test_the_labels_of_stage_02(trained, tmp_path):
    "The same frames, the same pairs, the same codes, though here nothing but the films and the model is read."
    from motionvla.labels import open_labels
    from motionvla.runs import read_parquet
    done = subprocess.run([BIN/'python', '-c', CODES, trained, tmp_path/'labels.parquet'], env=environment(), cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for part in ('human', 'robot'):
        done = motionvla('label', trained/'world'/part, '--model', trained/'vqvae'/'model', '--out', tmp_path/part, '--workers', 1)
        assert done.returncode == 0, done.stdout
        store, pairs, labels = open_labels(tmp_path/part), read_parquet(trained/'masks'/'pairs.parquet'), read_parquet(tmp_path/'labels.parquet')
        mine = [c for c in np.unique(pairs['clip']) if c.startswith(f'{part}/')]
        assert len(mine) > 3 and {c if c in store else c.split('/', 1)[1] for c in mine} <= set(store.clips)
        for clip in mine:
            rows = pairs['clip'] == clip; times, action, background = store.of(clip if clip in store else clip.split('/', 1)[1])
            assert (times == np.stack([pairs['t_source_s'][rows], pairs['t_target_s'][rows]], 1)).all(), clip
            for codes, k in ((action, 'a'), (background, 'b')): assert (codes == np.stack([labels[f'{k}{i}'][rows] for i in range(4)], 1)).all(), clip


def test_any_number_of_workers(undisturbed, films, trained, tmp_path):
    words = ['label', films, '--model', trained, '--out', tmp_path/'labels', '--merged', tmp_path/'merged']
    done = motionvla(*words, '--workers', 3)
    assert done.returncode == 0 and len(list((tmp_path/'labels').glob('*.parquet'))) > 1, done.stdout
    assert files(tmp_path/'merged') == files(undisturbed[0])
    again = motionvla(*words)
    assert again.returncode == 0 and ' 0.0 pairs/s' in again.stdout and files(tmp_path/'merged') == files(undisturbed[0])


def program(tmp_path, happens):
    path = tmp_path/'program.py'; path.write_text(PROGRAM.format(happens=happens))
    return [BIN/'python', path, 'label']


def test_killed_in_the_middle(undisturbed, films, trained, tmp_path):
    from motionvla.bulk import done
    words = [films, '--model', trained, '--out', tmp_path/'labels', '--merged', tmp_path/'merged', '--workers', '2']
    run = subprocess.Popen([*program(tmp_path, 'time.sleep(.3)'), *words], env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while len(done(tmp_path/'labels')) < 2 and run.poll() is None and time.monotonic() < end: time.sleep(.05)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL); run.wait()
    assert len(children) >= 2 and psutil.wait_procs(children, timeout=90)[1] == [], 'workers end with their parent'
    there, before = done(tmp_path/'labels'), files(tmp_path/'labels')
    assert 2 <= len(there) < 8 and not (tmp_path/'merged').exists()
    again = motionvla('label', *words)
    assert again.returncode == 0 and files(tmp_path/'merged') == files(undisturbed[0]), again.stdout
    assert all(files(tmp_path/'labels').get(n) == b for n, b in before.items() if n.startswith('w')), 'what stood was not done again'


@pytest.mark.parametrize('happens, lost', [("row['clip'] == 'good_2' and os.kill(os.getpid(), signal.SIGKILL)", 'good_2'),
                                           ("(mark := pathlib.Path(__file__).with_name('mark')).exists() or (mark.touch(), os.kill(os.getpid(), signal.SIGKILL))", '')],
                         ids=['always the same clip', 'once'])
def test_a_worker_dies(undisturbed, films, trained, tmp_path, happens, lost):
    from motionvla.bulk import quarantined
    from motionvla.labels import open_labels
    done = subprocess.run([*program(tmp_path, happens), films, '--model', trained, '--out', tmp_path/'labels', '--merged', tmp_path/'merged', '--workers', '2'],
                          env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200)
    assert done.returncode == 0, done.stdout
    if not lost: assert files(tmp_path/'merged') == files(undisturbed[0]); return
    assert open_labels(tmp_path/'merged').clips == [f'good_{i}' for i in range(8) if f'good_{i}' != lost]
    assert 'crashed the process that labelled it, twice' in quarantined(tmp_path/'merged')[lost]


@pytest.mark.parametrize('words, said', [
    (['no/such/folder', '--model', 'RUN'], 'no/such/folder does not exist'),
    (['FILMS', '--model', 'FILMS'], 'holds no trained VQ-VAE'),
    (['FILMS', '--model', 'SAVED'], 'name the profile'),
    (['FILMS', '--model', 'SAVED', '--profile', 'demo'], 'set vqvae.encoder and vqvae.image_px as they were'),
    (['FILMS', '--model', 'RUN', '--set', 'masks.gap_s=0.0'], 'masks.gap_s must be more than 0'),
    (['FILMS', '--model', 'RUN', '--set', 'vqvae.encoder=luck'], "unknown encoder 'luck'"),
], ids=lambda x: ' '.join(x) if isinstance(x, list) else None)
def test_wrong_words(films, trained, tmp_path, words, said):
    shutil.copytree(trained/'vqvae'/'model', tmp_path/'saved')
    real = dict(FILMS=films, RUN=trained, SAVED=tmp_path/'saved')
    done = motionvla('label', *[real.get(w, w) for w in words], '--out', tmp_path/'labels')
    assert done.returncode == 2 and said in done.stdout and len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert not list(tmp_path.glob('labels/*.parquet')) and not list(tmp_path.glob('labels/quarantine*'))


def test_another_origin_is_refused(undisturbed, films, trained):
    done = motionvla('label', films, '--model', trained, '--out', undisturbed[0], '--set', 'masks.gap_s=0.5')
    assert done.returncode == 2 and 'gap_s' in done.stdout and 'two folders' in done.stdout, done.stdout


def test_a_saved_model_alone(films, trained, undisturbed, tmp_path):
    shutil.copytree(trained/'vqvae'/'model', tmp_path/'saved')
    done = motionvla('label', films, '--model', tmp_path/'saved', '--profile', 'tiny', '--out', tmp_path/'labels', '--merged', tmp_path/'merged')
    assert done.returncode == 0 and files(tmp_path/'merged') == files(undisturbed[0]), done.stdout


def test_a_model_of_another_version(films, trained, tmp_path):
    "Told five numbers where this version has six: one sentence, before any worker starts."
    from safetensors.torch import load_file, save_file
    shutil.copytree(trained/'vqvae'/'model', tmp_path/'saved'); file = tmp_path/'saved'/'model.safetensors'
    weights = load_file(file); weights['encoder.motion.weight'] = weights['encoder.motion.weight'][:, :5].contiguous(); save_file(weights, file)
    done = motionvla('label', films, '--model', tmp_path/'saved', '--profile', 'tiny', '--out', tmp_path/'labels')
    assert done.returncode and 'of another version' in done.stdout and 'Traceback' not in done.stdout, done.stdout


def test_a_model_that_was_told_something_else(films, trained, tmp_path):
    "Six numbers, but measured otherwise: they would fit, and mean something else."
    shutil.copytree(trained/'vqvae'/'model', tmp_path/'saved'); file = tmp_path/'saved'/'config.json'
    made = json.loads(file.read_text()); assert made.pop('measured'); file.write_text(json.dumps(made))
    done = motionvla('label', films, '--model', tmp_path/'saved', '--profile', 'tiny', '--out', tmp_path/'labels')
    assert done.returncode and 'measured otherwise' in done.stdout and 'Traceback' not in done.stdout and not list(tmp_path.glob('labels/*.parquet')), done.stdout


MEMORY = '''
import sys, numpy as np, torch
from motionvla.datasets import Clip
from motionvla.encoders import load_encoder
from motionvla.config import MasksConfig
from motionvla.labels import label_windows, labelling
from motionvla.mask_bulk import masked_windows
from motionvla.mask_providers import make_provider
from motionvla.vqvae import HybridDisentangledVQVAE
class Long(Clip):
    def frames(self, times_s, size=0, camera=''):
        "A noisy room, and something grey that goes to and fro before it."
        px = size or 64; out = np.repeat(np.random.default_rng(0).integers(0, 255, (1, px, px, 3), dtype=np.uint8), len(times_s), 0)
        for picture, t in zip(out, times_s): x = int(px*(.3 + .3*np.sin(2*t))); picture[px//3:, x:x + px//4] = 120
        return out
torch.set_num_threads(1)
how = labelling(sys.argv[1]); model = HybridDisentangledVQVAE.from_pretrained(how.model).eval(); encoder = load_encoder(how.encoder, how.image_px)
def held(): return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])/2**10
rows, pairs = [], 0
film, config = Long('long', '', 900., 10., 9001), MasksConfig(**how.masks)
for times, *_ in label_windows(film, encoder, model, how, masked_windows(film, make_provider(config, {}, film), config)): rows.append(held()); pairs += len(times)
print(pairs, len(rows), *(rows[i] for i in (9, -1)), file=sys.stderr)
'''


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')
def test_memory_of_a_long_film(trained):
    "A quarter of an hour of film holds no more than its first minutes (features and pictures of all of it would be 300 MB)."
    done = subprocess.run([BIN/'python', '-c', MEMORY, trained], env=environment(), cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pairs, windows, early, late = done.stderr.strip().splitlines()[-1].split()
    assert int(pairs) == 4496 and int(windows) == 36 and float(late) - float(early) < 30, done.stderr


def test_on_ray(undisturbed, films, trained, tmp_path):
    "A cluster of three workers on this machine; one is killed in the middle. The bytes are those of one process."
    pytest.importorskip('ray', reason='Ray is not installed: pip install "motionvla[ray]"')
    from motionvla.bulk import done
    run = subprocess.Popen([BIN/'python', '-c', 'from motionvla.cli import app; app()', 'label', films, '--model', trained, '--out', tmp_path/'labels', '--merged', tmp_path/'merged',
                            '--workers', '3', '--ray', 'local'], env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 300
    while not done(tmp_path/'labels') and run.poll() is None and time.monotonic() < end: time.sleep(.02)
    workers = ray_workers(run.pid)
    assert len(workers) == 3
    workers[0].kill(); there = done(tmp_path/'labels')
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 0 and 0 < len(there) < 8, said
    assert files(tmp_path/'merged') == files(undisturbed[0])
