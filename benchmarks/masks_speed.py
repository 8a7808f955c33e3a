"Masks of a film on one core (CPU seconds): frames a second, times real time, where the time goes, against decoding alone and SAM on every frame; memory on a long film: python benchmarks/masks_speed.py [--video FILE …] [--hours 2]"
import argparse, importlib.util, json, subprocess, sys, tempfile, time
from pathlib import Path

from machine import Clock, save  # before NumPy: it sets its threads
import numpy as np


def made_film(path: Path, h: int, w: int, seconds: int = 20, fps: int = 30, noise: int = 4, crf: int = 23) -> Path:
    "The drawn film, to and fro in slow motion, as x264 makes films by default: B-frames, a key frame every 250 frames at most."
    import av, cv2
    from motionvla.mask_measure import drawn_film
    rng, frames = np.random.default_rng(0), drawn_film(22, h)[0]
    side = (w - h) // 2
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libx264', rate=fps, options=dict(crf=str(crf), preset='veryfast')); stream.width, stream.height, stream.pix_fmt = w, h, 'yuv420p'
        for i in range(seconds * fps):
            picture = cv2.copyMakeBorder(frames[np.r_[0:22, 20:0:-1][i // 3 % 42]], 0, 0, side, w - h - side, cv2.BORDER_REFLECT)
            if noise: picture = np.clip(picture + rng.integers(-noise, noise + 1, (h, w, 1)), 0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        out.mux(stream.encode())
    return path


def looped(source: Path, path: Path, seconds: float) -> Path:
    "The same film over and over, its packets copied, not encoded again."
    import av
    with av.open(str(source)) as film: length, base = max(p.pts + p.duration for p in film.demux(video=0) if p.dts is not None), film.streams.video[0].time_base
    with av.open(str(path), 'w') as out:
        copy = None
        for shift in range(0, int(seconds / base), length):
            with av.open(str(source)) as film:
                copy = copy or out.add_stream_from_template(film.streams.video[0])
                for p in film.demux(video=0):
                    if p.dts is not None: p.pts, p.dts, p.stream = p.pts + shift, p.dts + shift, copy; out.mux(p)
    return path


def speed(path: Path, config, goes: int) -> dict:
    "Masks a film as a worker does, and decodes the same frames alone; CPU seconds, the best of `goes`."
    import cv2
    import motionvla.mask_bulk as bulk
    from motionvla.datasets import VideoClip, open_video, _opened
    from motionvla.mask_providers import Provider
    cv2.setNumThreads(1)
    row, best = dict(clip='film', file=str(path)), None
    originals = [(owner, name, getattr(owner, name)) for owner, name in ((bulk, 'open_clip'), (bulk, 'flow_steps'), (VideoClip, 'frames'), (Provider, '__call__'),
                                                                          (bulk, 'cover'), (bulk.MaskWriter, 'add'), (bulk.MaskWriter, 'flush'))]
    for _ in range(goes):
        clock = Clock()
        for (owner, name, _), piece in zip(originals, ('open', 'steps', 'decode', 'masks', 'store', 'store', 'store')): clock.wrap(owner, name, piece)
        with tempfile.TemporaryDirectory() as d:
            said = bulk.mask_origin(config, [row])[0]; worker = bulk.Masker(config, d, said)
            _opened.cache_clear(); clock.seconds.clear(); start = time.process_time()
            result = worker(row); worker.flush(); total = time.process_time() - start
        for owner, name, function in originals: setattr(owner, name, function)
        if result['reason']: raise SystemExit(result['reason'])
        if best is None or total < best[0]: best = total, clock.seconds, result
    total, seconds, result = best
    video = open_video(path); times = video.stamps[bulk.sampled(video.stamps, config.sample_hz)]; px = min(config.flow_px, video.info.height, video.info.width); floor = np.inf
    for _ in range(goes):
        _opened.cache_clear(); start = time.process_time(); video = open_video(path)
        for k in range(0, len(times), bulk.WINDOW): video.frames(times[k:k + bulk.WINDOW], px)
        floor = min(floor, time.process_time() - start)
    n, length = result['frames'], result['video_s']
    return dict(what=f'{config.provider}, {px} px', film=path.name, size=f'{video.info.width}x{video.info.height}', film_s=length, frames=n, frames_per_s=n / total, times_real=length / total,
                decode_alone_frames_per_s=n / floor, decode_alone_times_real=length / floor, share_of_decode_speed=floor / total,
                **{f'share_{k}': seconds.get(k, 0.) / total for k in ('open', 'decode', 'steps', 'masks', 'store')})


def memory(path: Path, config) -> dict:
    "Masks a long film in this process and says what it holds: after the first window, after a minute of work, at the end, and the most of all, MB."
    import cv2
    import motionvla.mask_bulk as bulk
    cv2.setNumThreads(1)
    def held(): return int(Path('/proc/self/status').read_text().split('VmRSS:')[1].split()[0]) / 2**10
    film = bulk.open_clip(dict(clip='film', file=str(path))); source = bulk.make_provider(config, dict(clip='film', file=str(path)), film)
    start, kept, rows = time.monotonic(), [], []
    for part in bulk.masked_windows(film, source, config):
        kept.append(bulk.cover(part.masks, config.grid)); rows.append((time.monotonic() - start, held()))
    minute = next((m for t, m in rows if t >= 60), rows[-1][1])
    return dict(what='memory', film=path.name, film_s=film.duration_s, frames=sum(map(len, kept)), first_window_MB=rows[0][1], after_a_minute_MB=minute, end_MB=rows[-1][1],
                most_MB=max(m for _, m in rows), coverage_kept_MB=sum(k.nbytes for k in kept) / 2**20)


def sam_seconds(frames: int = 2) -> dict:
    "SAM (vit_b, weights drawn at random: they do not change the time) asked for a point on a frame, seconds a frame on one core."
    import torch
    from segment_anything import SamPredictor, sam_model_registry
    torch.set_num_threads(1); torch.manual_seed(0)
    predictor, picture, times = SamPredictor(sam_model_registry['vit_b']().eval()), np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8), []
    for _ in range(frames):
        start = time.process_time(); predictor.set_image(picture); predictor.predict(point_coords=np.array([[320, 240]]), point_labels=np.array([1]))
        times.append(time.process_time() - start)
    return dict(what='SAM vit_b on every frame', frames=frames, seconds_a_frame=float(np.mean(times)), frames_per_s=1 / float(np.mean(times)))


if __name__ == '__main__':
    from dataclasses import replace
    from motionvla.config import MasksConfig
    parser = argparse.ArgumentParser()
    parser.add_argument('--video', nargs='*', type=Path, default=[], help='films of your own, besides the made ones')
    parser.add_argument('--provider', default='flow'); parser.add_argument('--px', type=int, default=0, help='side of the masks at most; 0 = the default')
    parser.add_argument('--goes', type=int, default=2); parser.add_argument('--hours', type=float, default=2., help='length of the film for memory; 0 = none')
    parser.add_argument('--seconds', type=int, default=60, help='length of the films for speed'); parser.add_argument('--no-sam', action='store_true')
    parser.add_argument('--memory-of', type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    config = replace(MasksConfig(provider=given.provider), **({'flow_px': given.px} if given.px else {}))
    if given.memory_of: print(json.dumps(memory(given.memory_of, config))); sys.exit()
    rows = []
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for h, w in ((480, 640), (1080, 1920)):
            short = made_film(d/f'short_{h}.mp4', h, w); rows.append(speed(looped(short, d/f'made_{h}p.mp4', given.seconds), config, given.goes))
        for path in given.video: rows.append(speed(path, config, given.goes))
        if given.hours:
            long = looped(made_film(d/'small.mp4', 480, 640, noise=0, crf=35), d/'long.mp4', given.hours * 3600)
            told = subprocess.run([sys.executable, __file__, '--memory-of', long, '--provider', given.provider, '--px', str(given.px)], capture_output=True, text=True)
            if told.returncode: raise SystemExit(told.stderr)
            rows.append(json.loads(told.stdout.strip().splitlines()[-1]))
        if not given.no_sam and importlib.util.find_spec('segment_anything'):
            sam = sam_seconds()
            rows.append(sam | dict(times_real=sam['frames_per_s'] / config.sample_hz, ours_is_faster=rows[0]['frames_per_s'] / sam['frames_per_s']))
    for row in rows: print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))
    save('masks_speed', [{k: row.get(k) for k in dict.fromkeys(k for r in rows for k in r)} for row in rows])
