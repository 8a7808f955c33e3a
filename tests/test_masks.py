"Masks for volume, through the command: kills, crashes, any number of workers, and films that nobody would want."
import os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import psutil, pytest
from conftest import BIN, ROOT, environment, motionvla, moving_square

#: the command, with a shard after each clip and something that happens in the worker processes, which import this file too
PROGRAM = '''
import multiprocessing, os, pathlib, signal, time
import motionvla.bulk, motionvla.mask_bulk as bulk
motionvla.bulk.SAVE_S, real = 0., bulk.open_clip

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


def files(folder): return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file() and p.name != '.lock'}  # the lock is no content


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
    from motionvla.mask_store import done
    words = [films, '--out', tmp_path/'masks', '--merged', tmp_path/'merged', '--workers', '2', '--pixels', *OPTIONS]
    run = subprocess.Popen([*program(tmp_path, 'time.sleep(.3)'), *words], env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(done(tmp_path/'masks')) < 2 and run.poll() is None and time.monotonic() < end: time.sleep(.05)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL); run.wait()
    assert len(children) >= 2 and psutil.wait_procs(children, timeout=10)[1] == [], 'workers end with their parent'
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


def ray_workers(pid):
    "The processes below one that work for us on its cluster; some may be ending while we look."
    def said(p):
        try: return ' '.join(p.cmdline())
        except psutil.Error: return ''
    return [p for p in psutil.Process(pid).children(recursive=True) if 'RayWorker' in said(p)]


def test_a_ray_worker_dies(undisturbed, films, tmp_path):
    "A cluster of three workers on this machine; one is killed in the middle. The bytes are those of one process."
    pytest.importorskip('ray', reason='Ray is not installed: pip install "motionvla[ray]"')
    from motionvla.mask_store import done
    run = subprocess.Popen([BIN/'python', '-c', 'from motionvla.cli import app; app()', 'masks', films, '--out', tmp_path/'masks', '--merged', tmp_path/'merged',
                            '--workers', '3', '--ray', 'local', '--pixels', *OPTIONS], env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 300
    while not done(tmp_path/'masks') and run.poll() is None and time.monotonic() < end: time.sleep(.02)
    workers = ray_workers(run.pid)
    assert len(workers) == 3
    workers[0].kill(); there = done(tmp_path/'masks')
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 0 and 0 < len(there) < 8, said
    assert files(tmp_path/'merged') == files(undisturbed[0])


def encoded(path, frames, codec='libx264', pix='yuv420p', stamps_s=None, crf=12, **options):
    "Frames as a film of any codec and pixel format; with `stamps_s` of a variable rate."
    import av
    from fractions import Fraction
    with av.open(str(path), 'w') as out:
        stream = out.add_stream(codec, rate=10, options=dict(crf=str(crf), **options) if codec.startswith('lib') else options); stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix
        if stamps_s is not None: stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgba' if picture.shape[2] == 4 else 'rgb24')
            if stamps_s is not None: frame.pts, frame.time_base = round(stamps_s[i] * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def turned(path):
    "Writes into an mp4 that it is to be shown turned by 90° clockwise, as a phone that was held upright does."
    data = bytearray(path.read_bytes()); at = data.index(b'tkhd') + 4 + 40   # its matrix: nine numbers, 16.16 and 2.30
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[at:at + 36] = b''.join(x.to_bytes(4, 'big', signed=True) for x in matrix)
    path.write_bytes(data)


@pytest.fixture(scope='session')
def odd(tmp_path_factory):
    "A batch of films that nobody would want, masked: (store, reasons, stamps of the one of variable rate)."
    from motionvla.mask_measure import drawn_film
    from motionvla.mask_store import open_masks, quarantined
    folder = tmp_path_factory.mktemp('odd'); rng = np.random.default_rng(0)
    frames = drawn_film(22, 96)[0][np.r_[0:22, 20:2:-1]]; clear = np.concatenate([frames, rng.integers(0, 256, frames.shape[:3] + (1,), dtype=np.uint8)], -1)
    for codec, name in (('libx264', 'h264'), ('libx265', 'hevc')):
        for bits, pix in ((8, 'yuv420p'), (10, 'yuv420p10le')): encoded(folder/f'{name}_{bits}_bit.mp4', frames, codec, pix, **({'x265-params': 'log-level=none'} if 'x265' in codec else {}))
    encoded(folder/'vp9.webm', frames, 'libvpx-vp9', b='0'); encoded(folder/'vp9_alpha.webm', clear, 'libvpx-vp9', 'yuva420p', b='0')
    encoded(folder/'qtrle_alpha.mov', clear, 'qtrle', 'argb'); encoded(folder/'png_alpha.mov', clear, 'png', 'rgba')
    tall = np.pad(frames, ((0, 0), (16, 16), (0, 0), (0, 0)), mode='edge')   # 128 high, 96 wide
    encoded(folder/'tall.mp4', tall); turned(encoded(folder/'phone.mp4', np.rot90(tall, 1, (1, 2))))
    stamps = np.cumsum(rng.uniform(.04, .16, 40)).round(3); stamps -= stamps[0]
    encoded(folder/'variable.mp4', frames, stamps_s=stamps)
    encoded(folder/'black.mp4', np.zeros_like(frames)); encoded(folder/'constant.mp4', np.full_like(frames, 93)); encoded(folder/'one_frame.mp4', frames[:1])
    encoded(folder/'one_pixel.mkv', frames[:, :1, :1], 'ffv1', 'bgr0'); encoded(folder/'two_pixels.mp4', frames[:, :2, :2])
    (folder/'zero.mp4').touch(); (folder/'truncated.mp4').write_bytes((folder/'h264_8_bit.mp4').read_bytes()[:6000]); (folder/'text.mp4').write_text('not a film')
    done = motionvla('masks', folder, '--out', folder/'masks', '--workers', 2, '--pixels', *OPTIONS, '--set', 'masks.flow_px=96')
    assert done.returncode == 0 and 'Traceback' not in done.stdout, done.stdout
    return open_masks(folder/'masks'), quarantined(folder/'masks'), stamps


@pytest.mark.parametrize('name, like', [('h264_10_bit', 'h264_8_bit'), ('hevc_8_bit', 'h264_8_bit'), ('hevc_10_bit', 'hevc_8_bit'), ('vp9', 'h264_8_bit'), ('vp9_alpha', 'vp9'),
                                        ('qtrle_alpha', 'h264_8_bit'), ('png_alpha', 'qtrle_alpha'), ('phone', 'tall')])
def test_odd_but_good(odd, name, like):
    "Ten bits, an alpha plane, a phone held upright: the masks are those of the plain film, within the noise of coding."
    from motionvla.mask_measure import iou
    a, b = (odd[0].pixels(n) for n in (name, like))
    scores = [iou(x, y) for x, y in zip(a, b) if (x | y).any()]
    assert len(a) == len(b) == 20 and len(scores) >= 15 and np.mean(scores) > .9, np.mean(scores)


def test_a_variable_rate(odd):
    store, _, stamps = odd
    times, frames = store.of('variable')[0], store.frames('variable')
    assert np.allclose(times, stamps[frames], atol=1e-3) and np.abs(times - np.arange(0, stamps[-1] + 1e-6, .2)[:len(times)]).max() <= .08 + 1e-6
    assert store.pixels('variable').any((1, 2)).mean() > .7


@pytest.mark.parametrize('name, said', [('black', 'nothing to mask'), ('constant', 'nothing to mask'), ('one_frame', 'nothing to mask'), ('one_pixel', 'too small'), ('two_pixels', 'too small'),
                                        ('zero', 'is empty (0 bytes)'), ('truncated', 'cut off'), ('text', 'cannot be opened')])
def test_bad_films_are_set_aside(odd, name, said):
    store, reasons, _ = odd
    assert name not in store and said in reasons[name] and '\n' not in reasons[name], reasons
