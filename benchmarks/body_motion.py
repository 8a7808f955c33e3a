"""What do the six numbers of parts/mask_motion say of how a hand moved, and what is it worth that no step may exceed a limit? python benchmarks/body_motion.py --data DIR
DIR is that of benchmarks/latent.py. Training clips only: a fifth of them is kept back for scoring, so that nothing is chosen here on what is scored there."""
import argparse, os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine  # before NumPy: it sets its threads
import latent
import numpy as np

TRIED = (('five', None), ('six', None), ('five', .06), ('six', .1), ('six', .06), ('six', .03))  # numbers (five: without widening), limit


def steps(run) -> np.ndarray:
    "Body motion of each sample of the hand's training clips, without a limit: float32 `rows 6`, other rows 0."
    from motionvla.datasets import open_clip, run_clips
    from motionvla.mask_motion import BODY_MOTION, MOTION_PX, clip_masks, clip_motion, mask_stores
    from motionvla.runs import read_parquet
    samples, rows = read_parquet(run.path/'masks'/'samples.parquet'), run_clips(run.path)
    stores, clip, out = mask_stores(run), samples['clip'], np.zeros((len(samples['clip']), len(BODY_MOTION)), np.float32)
    def motion(name):
        mine = np.flatnonzero(clip == name); frames = open_clip(rows[name]).frames(samples['time_s'][mine], MOTION_PX)
        out[mine] = clip_motion(frames, clip_masks(stores, name, len(mine)), limit=np.inf)[0]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(motion, [c for c in np.unique(clip[samples['split'] == 'train']).tolist() if c.startswith('human/')]))
    return out


def trees(x, y, fit, score):
    from sklearn.ensemble import HistGradientBoostingRegressor
    grown = lambda y: HistGradientBoostingRegressor(max_iter=150, learning_rate=.06, max_leaf_nodes=15, min_samples_leaf=30, random_state=0).fit(x[fit], y[fit])
    return np.stack([grown(v).predict(x[score]) for v in y.T], 1)


def rows_of(masks, run):
    "A row for each of `TRIED`: R² of the three axes."
    from motionvla.latent_probe import inputs, load_truth, probe, r2
    from motionvla.latents import ProductQuantiser, kept_back, principal
    from motionvla.mask_motion import pair_motion_2d
    from motionvla.masks import load_pairs
    pairs, every = load_pairs(run), steps(run); still = np.tile(np.eye(3), (len(every), 1, 1))
    y = load_truth(run, {k: getattr(pairs, k) for k in ('clip', 'body', 't_source_s', 't_target_s')})['motion']
    use, back = np.char.startswith(pairs.clip.astype(str), 'human/') & (pairs.split == 'train'), kept_back(pairs.clip)
    fit, score = use & ~back, use & back
    told = lambda x: r2(y[score], probe(x, y, fit, None, pairs.clip)[score]).round(4).tolist()
    for numbers, limit in TRIED:
        body = np.clip(every, -(limit or np.inf), limit or np.inf)[:, :5 if numbers == 'five' else 6]
        x = pair_motion_2d(body, still, pairs.source, pairs.target)[0]
        x = np.clip(x/np.sqrt(np.square(x[fit]).mean(0)), -4, 4).astype(np.float32)
        pca = principal(x[fit], x.shape[1]); z = (x - pca['mean']) @ pca['basis'].T
        codes = ProductQuantiser(dims=2).fit(z[fit]).encode(z)
        yield dict(masks=masks, numbers=numbers, limit=limit, pairs_fitted=int(fit.sum()), pairs_scored=int(score.sum()), clips_scored=len(np.unique(pairs.clip[score])),
                   bits16=told(inputs(codes, fit, 16)), line=told(inputs(x, fit)), trees=r2(y[score], trees(x, y, fit, score)).round(4).tolist())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('_runs/latent')); asked = parser.parse_args()
    import cv2
    cv2.setNumThreads(1)
    machine.save('body_motion', [row for masks, run in latent.prepare(asked.data.absolute()).items() for row in rows_of(masks, run)])
