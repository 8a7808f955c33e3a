"""What do the six numbers of parts/mask_motion say of how a hand moved, and what are frames a second, picture size and the limit of a step worth? python benchmarks/body_motion.py --data DIR
DIR is that of benchmarks/latent.py. Training clips only: a fifth of them is kept back for scoring, so that nothing is chosen here on what is scored there."""
import argparse, os, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine  # before NumPy: it sets its threads
import latent
import numpy as np

from motionvla.mask_motion import STEP_LIMIT

#: frames a second that are looked at, side of the picture, limits of a step; which of the numbers
TRIED = (((5, 128, STEP_LIMIT), 'six'), ((5, 224, STEP_LIMIT), 'six'), ((10, 128, STEP_LIMIT), 'six'), ((10, 224, None), 'six'), ((10, 224, STEP_LIMIT), 'six'), ((10, 224, STEP_LIMIT), 'five'))


def steps(run, clips, hz, px, limit) -> tuple:
    "Body motion from each sample to the next, float32 `rows 6`, of some clips (other rows 0); processor seconds for a second of film."
    from motionvla.datasets import open_clip, run_clips
    from motionvla.mask_motion import BODY_MOTION, follow, mask_stores, sample_windows
    from motionvla.runs import read_parquet
    samples, rows, stores, start = read_parquet(run.path/'masks'/'samples.parquet'), run_clips(run.path), mask_stores(run), time.process_time()
    clip, out = samples['clip'], np.zeros((len(samples['clip']), len(BODY_MOTION)), np.float32)
    def motion(name):
        mine, film = np.flatnonzero(clip == name), open_clip(rows[name])
        windows = sample_windows(stores[name].one_by_one(name), samples['time_s'][mine])
        out[mine] = np.roll(np.concatenate([body for _, body, _ in follow(film, windows, px, hz, limit=np.inf if limit is None else limit)]), -1, 0)
        return film.duration_s
    with ThreadPoolExecutor(os.cpu_count()) as pool: seconds = sum(pool.map(motion, clips))
    return out, (time.process_time() - start)/seconds


def trees(x, y, fit, score):
    from sklearn.ensemble import HistGradientBoostingRegressor
    grown = lambda y: HistGradientBoostingRegressor(max_iter=150, learning_rate=.06, max_leaf_nodes=15, min_samples_leaf=30, random_state=0).fit(x[fit], y[fit])
    return np.stack([grown(v).predict(x[score]) for v in y.T], 1)


def rows_of(masks, run, most):
    "A row for each of `TRIED`: R² of the three axes."
    from motionvla.latent_probe import inputs, load_truth, probe, r2
    from motionvla.latents import ProductQuantiser, kept_back, principal
    from motionvla.mask_motion import pair_motion_2d
    from motionvla.masks import load_pairs
    pairs, made = load_pairs(run), {}
    y = load_truth(run, {k: getattr(pairs, k) for k in ('clip', 'body', 't_source_s', 't_target_s')})['motion']
    human = np.char.startswith(pairs.clip.astype(str), 'human/') & (pairs.split == 'train')
    clips = np.unique(pairs.clip[human])[:most or None]; use, back = human & np.isin(pairs.clip, clips), kept_back(pairs.clip)
    fit, score = use & ~back, use & back
    told = lambda x: r2(y[score], probe(x, y, fit, None, pairs.clip)[score]).round(4).tolist()
    for how, numbers in TRIED:
        if how not in made: made[how] = steps(run, clips.tolist(), *how)
        every, cost = made[how]; still = np.tile(np.eye(3), (len(every), 1, 1))
        x = pair_motion_2d(every[:, :5 if numbers == 'five' else 6], still, pairs.source, pairs.target)[0]
        x = np.clip(x/np.sqrt(np.square(x[fit]).mean(0)), -4, 4).astype(np.float32)
        pca = principal(x[fit], x.shape[1]); z = (x - pca['mean']) @ pca['basis'].T
        codes = ProductQuantiser(dims=2).fit(z[fit]).encode(z)
        yield dict(masks=masks, numbers=numbers, hz=how[0], px=how[1], limit=how[2], cpu_s_per_s=cost, pairs_fitted=int(fit.sum()), pairs_scored=int(score.sum()), clips_scored=len(np.unique(pairs.clip[score])),
                   bits16=told(inputs(codes, fit, 16)), line=told(inputs(x, fit)), trees=r2(y[score], trees(x, y, fit, score)).round(4).tolist())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('_runs/latent')); parser.add_argument('--clips', type=int, default=0, help='the first so many training clips; 0 = all'); asked = parser.parse_args()
    import cv2
    cv2.setNumThreads(1)
    machine.save('body_motion', [row for masks, run in latent.prepare(asked.data.absolute()).items() for row in rows_of(masks, run, asked.clips)])
