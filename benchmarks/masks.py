"""How good are the providers of masks, and what does each cost? Against the tabletop's truth, and on real clips where nobody knows it:
python benchmarks/masks.py [--data DIR] [--real FOLDER] [--scale 1.0]
The start states are nobody else's. Real: a folder of .mp4 files, and hand_stills/{img,mask} in it."""
import argparse, json, tempfile, time
from dataclasses import replace
from pathlib import Path

from machine import RESULTS, machine, save  # before NumPy: it sets its threads
import numpy as np

SEED = 20261130
GROUPS = {'hand, head still': ('hand', 0., 24), 'hand, head moving': ('hand', 1., 60), 'two_hands': ('two_hands', 1., 24),
          'franka': ('franka', 1., 24), 'fetch': ('fetch', 1., 24), 'two_franka': ('two_franka', 1., 24)}  # body, sway, clips
PROVIDERS = ('flow', 'hand', 'fuse', 'auto')
ESTIMATORS = ('dis-ultrafast', 'dis-fast', 'dis-medium', 'farneback')


def make(folder: Path, body: str, sway: float, n: int) -> list:
    "Clips of a group, each a row with what its camera did and whether something else moved."
    from motionvla.config import WorldConfig
    from motionvla.scenes import HUMANS, sample_scene
    from motionvla.splits import training_rng
    from motionvla.tasks import GROUPS as COMBINATIONS, VERBS, sample_task
    from motionvla.world import ONE_ARM, gather, run_jobs
    from motionvla.datasets import read_clips
    from motionvla.runs import read_json
    w, tasks = WorldConfig(), VERBS if body.startswith('two_') else ONE_ARM
    how = dict(part=body, body=body, seed=SEED + round(sway), groups=list(COMBINATIONS), wordings=w.wordings, sway=sway, same_color=False, wild=w.wild, distractors=list(w.distractors),
               image_px=224, fps=30 if body in HUMANS else 10, variation=w.human_variation if body in HUMANS else w.robot_variation, noise=0. if body in HUMANS else w.robot_noise, wrist=False)
    jobs = [dict(how, index=i, verb=tasks[i % len(tasks)], split='test') for i in range(n)]
    run_jobs(folder, jobs, 1); gather(folder, jobs)
    rows = read_clips(folder)
    for row, job in zip(rows, jobs):
        attempt = read_json(folder/'.parts'/f'{job["index"]:06d}.json')['attempts'] - 1
        rng = training_rng(job['seed'], body, job['index'], attempt)
        scene = sample_scene(rng, sample_task(rng, job['verb'], tuple(job['groups']), job['wordings']), body, sway, False, distractors=job['distractors'], wild=job['wild'])
        row.update(mover=scene.looks['mover'] is not None, turning=bool(scene.camera['turns']), walking=scene.camera['walk'] > .3)
    return rows


def rests(row: dict, times: np.ndarray) -> np.ndarray:
    "Whether all arms are slower than 2 cm/s at the given times."
    from motionvla.mask_providers import truth_file
    from motionvla.video import nearest
    with np.load(truth_file(row)) as z: at, time_s = z['effector_world'].reshape(len(z['time_s']), -1, 3), z['time_s']
    speed = np.linalg.norm(np.gradient(at, time_s, axis=0), axis=-1).max(1)
    return speed[nearest(time_s, times)] < .02


def measure(row: dict, config) -> dict:
    "One provider on one clip with truth."
    from motionvla.mask_bulk import clip_masks
    from motionvla.mask_flow import dense_flows
    from motionvla.mask_measure import boundary_f, iou, stability
    from motionvla.mask_providers import truth_masks
    parts, start = [], time.process_time()
    clip_masks(row, config, see=parts.append)
    spent = time.process_time() - start
    times, pictures, masks, sure = (np.concatenate([getattr(p, k) for p in parts]) for k in ('time_s', 'pictures', 'masks', 'confidence'))
    true = truth_masks(row, times, masks.shape[1]); wrong, back = (masks & ~true).mean((1, 2)), dense_flows(pictures).backward if len(times) > 1 else np.zeros((0, *masks.shape[1:], 2))
    still, gone = rests(row, times), ~true.any((1, 2)); mean = lambda v: float(np.mean(v)) if len(v) else np.nan
    each = np.array([iou(m, t) for m, t in zip(masks, true)])
    return dict(clip=row['clip'], iou=float(np.nanmean(each)), boundary_f=float(np.nanmean([boundary_f(m, t) for m, t in zip(masks, true)])), still_false=mean(wrong[still]), gone_false=mean(wrong[gone]),
                stability=stability(masks, back), stability_true=stability(true, back), found=float(masks.any((1, 2)).mean()), confidence=float(sure.mean()), leaves=bool(gone.any()),
                frames=len(times), seconds=spent, **{k: row[k] for k in ('mover', 'turning', 'walking')})


def summary(group: str, provider: str, clips: list) -> dict:
    "A row of the table: means over clips, 95 % intervals by clip."
    from motionvla.mask_measure import bootstrap
    v = lambda k: np.array([c[k] for c in clips], float); mean = lambda k: float(np.nanmean(v(k))) if not np.isnan(v(k)).all() else None
    out = dict(group=group, provider=provider, n=len(clips))
    for k in ('iou', 'boundary_f'): out[f'{k}_mean'] = mean(k); out[f'{k}_low'], out[f'{k}_high'] = bootstrap(v(k)[~np.isnan(v(k))]) if not np.isnan(v(k)).all() else (None, None)
    ok = ~np.isnan(v('iou'))
    from scipy.stats import spearmanr
    told = float(spearmanr(v('confidence')[ok], v('iou')[ok])[0]) if ok.sum() > 5 and np.ptp(v('confidence')[ok]) > 0 else None
    return out | {k: mean(k) for k in ('still_false', 'gone_false', 'stability', 'stability_true', 'found', 'confidence')} | dict(confidence_tells=told, fps_core=float(v('frames').sum() / v('seconds').sum()))


def real(folder: Path, config) -> list:
    "Real clips without truth, and stills with it."
    from motionvla.config import ConfigError
    from motionvla.mask_bulk import clip_masks
    from motionvla.mask_flow import dense_flows
    from motionvla.mask_measure import stability
    rows = []
    for path in sorted(folder.glob('*.mp4')):
        for provider in PROVIDERS:
            parts, start = [], time.process_time()
            try: clip_masks(dict(clip=path.stem, file=str(path)), replace(config, provider=provider), see=parts.append)
            except ConfigError as e: print(e); continue
            spent = time.process_time() - start; cat = lambda k: np.concatenate([getattr(p, k) for p in parts])
            masks = cat('masks')
            rows.append(dict(clip=path.stem, provider=provider, frames=len(masks), area=float(masks.mean()), without=float(1 - masks.any((1, 2)).mean()), stability=stability(masks, dense_flows(cat('pictures')).backward),
                             confidence=float(cat('confidence').mean()), fps_core=len(masks) / spent))
    return rows


def stills(folder: Path) -> list:
    "IoU of the hand alone on stills; motion has nothing to say of a still, so the vote of fuse is the hand's."
    from PIL import Image
    from motionvla.landmarks import hand_masks, load_hand_models
    from motionvla.mask_measure import bootstrap, iou
    from motionvla.mask_flow import flow_masks
    from motionvla.mask_providers import fuse
    models, score = load_hand_models(), {'hand': [], 'fuse': []}
    for path in sorted((folder/'img').iterdir()):
        frame = np.asarray(Image.open(path).convert('RGB')); true = np.asarray(Image.open(next((folder/'mask').glob(f'{path.stem}*'))).convert('L')) > 127
        hand, sure = hand_masks(frame[None], models, forearm=False, px=160, rounds=2); flow, quiet = flow_masks(frame[None])
        score['hand'].append(iou(hand[0], true)); score['fuse'].append(iou(fuse([flow, hand], [quiet, sure], [.5, 1.])[0][0], true))
    return [dict(provider=k, n=len(v), iou_mean=float(np.mean(v)), iou_low=bootstrap(np.array(v))[0], iou_high=bootstrap(np.array(v))[1], worst=float(min(v))) for k, v in score.items()]


def plain(x):
    "JSON has no NaN: null."
    if isinstance(x, dict): return {k: plain(v) for k, v in x.items()}
    if isinstance(x, list): return [plain(v) for v in x]
    return None if x != x else x


def tags(clips: list, provider: str) -> list:
    "The clips with a moving head, by what else happens in them."
    kinds = {'head turns': lambda c: c['turning'], 'head does not turn': lambda c: not c['turning'], 'walking': lambda c: c['walking'], 'body leaves the picture': lambda c: c['leaves'],
             'something else moves': lambda c: c['mover'], 'nothing else moves': lambda c: not c['mover']}
    return [summary(name, provider, some) for name, is_one in kinds.items() if (some := [c for c in clips if is_one(c)])]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='a folder that keeps the clips'); parser.add_argument('--real', type=Path, help='real clips'); parser.add_argument('--scale', type=float, default=1., help='of the numbers of clips')
    asked = parser.parse_args()
    import cv2; cv2.setNumThreads(1)
    from motionvla.config import MasksConfig
    config, table, by_tag, by_estimator = MasksConfig(flow_px=224), [], [], []
    with tempfile.TemporaryDirectory() as d:
        for group, (body, sway, n) in GROUPS.items():
            rows = make((asked.data or Path(d))/f'{body}_{sway:g}', body, sway, max(2, round(n * asked.scale)))
            for provider in PROVIDERS:
                clips = [measure(row, replace(config, provider=provider)) for row in rows]
                table.append(summary(group, provider, clips)); print(json.dumps(table[-1]), flush=True)
                if group == 'hand, head moving' and provider == 'flow': by_tag = tags(clips, provider)
            if group in ('hand, head moving', 'franka'):
                for name in ESTIMATORS: by_estimator.append(summary(group, name, [measure(row, replace(config, estimator=name)) for row in rows[:24]])); print(json.dumps(by_estimator[-1]), flush=True)
    found = dict(tags=by_tag, estimators=by_estimator)
    if asked.real: found |= dict(real=real(asked.real, config), stills=stills(asked.real/'hand_stills') if (asked.real/'hand_stills').is_dir() else [])
    save('masks', table)
    path = RESULTS/'masks.json'; path.write_text(json.dumps(plain(json.loads(path.read_text()) | found), indent=1) + '\n')
