"""How good must a mask be? The tabletop's true masks spoilt in seven ways; on each a VQ-VAE of the demo recipe, and what its action codes hold: python benchmarks/mask_quality.py
The world, the features and the rows stand in --data; goes on where it stopped. Method: nbs/parts/mask_quality."""
import argparse, contextlib, functools, io, os, shutil, sys, time
from pathlib import Path

import machine  # before NumPy, torch and MuJoCo: it sets their threads
import numpy as np

os.environ.setdefault('MUJOCO_GL', 'egl')
#: kind → strengths; a length is in sides of the picture, a share of frames or patches
STRENGTHS = dict(erode=(.01, .03, .07), dilate=(.02, .07, .2), shift=(.03, .1, .3), jitter=(.03, .1, .3), drop=(.25, .6, .9), miss=(.25, .6, .9), invent=(.05, .2, .6))
#: the truth itself, the masks from motion as they are, everything called body; and the truth by one of its two doors only, the other as of `none`
WHOLE = ('truth', 'flow', 'none', 'coverage', 'geometry')


def base_run(data: Path):
    "One world for all: more held-out clips than the demo's, fewer of the robot; true masks."
    from motionvla.runs import open_run
    world = dict(human_clips=300, human_test=1/3, trajectories_per_task=20, robot_test=1, workers=1)
    return open_run(data/'base', 'demo', 0, dict(world=world, masks=dict(provider='truth', workers=1)))


def prepare(run, data: Path):
    "World, true masks, frozen features, and the pixels of the true masks and of those from motion; what is there is not made again. Returns the features."
    from dataclasses import replace
    from motionvla.datasets import run_clips
    from motionvla.encoders import ensure_features
    from motionvla.mask_bulk import mask_rows
    from motionvla.masks import ensure_masks
    from motionvla.runs import read_parquet
    ensure_masks(run)
    samples, clips = read_parquet(run.path/'masks'/'samples.parquet'), run_clips(run.path)
    for name in ('truth', 'flow'):
        mask_rows([clips[c] for c in dict.fromkeys(samples['clip'].tolist())], replace(run.config.masks, provider=name), data/name, pixels=True)
    return ensure_features(run)


@functools.lru_cache(maxsize=2)
def pixels(data: Path, name: str, clip: str) -> np.ndarray:
    "The masks of a clip, bool `t px px`."
    from motionvla.mask_store import open_masks
    store = open_masks(data/name)   # a clip in which nothing was found is set aside, and not in it
    return store.pixels(clip) if clip in store else np.zeros_like(pixels(data, 'truth', clip))


def spoilt(data: Path, kind: str, strength: float, seed: int):
    "A function clip → masks. What is drawn by lot depends on the seed and the clip alone."
    import zlib
    from motionvla.mask_quality import KINDS, degrade
    if kind == 'flow': return lambda clip: pixels(data, 'flow', clip)
    true = lambda clip: pixels(data, 'truth', clip)
    if kind == 'none': return lambda clip: np.ones_like(true(clip))
    if kind in WHOLE: return true
    rng = lambda clip: np.random.default_rng([seed, list(KINDS).index(kind), zlib.crc32(clip.encode())])
    return lambda clip: degrade(true(clip), kind, strength, rng(clip))


def row_run(base, data: Path, kind: str, strength: float, seed: int, steps: int):
    "A run folder of its own that shares the base's world and features; its masks are made here."
    from motionvla.mask_quality import replace_masks
    from motionvla.mask_measure import coverage, geometry, iou
    from motionvla.runs import open_run, read_json
    world = {k: getattr(base.config.world, k) for k in ('human_clips', 'human_test', 'trajectories_per_task', 'robot_test')}
    run = open_run(data/'running'/f'{kind}-{strength}-{seed}', 'demo', seed, dict(world=world, vqvae=dict(steps=steps, flow_head=0., motion_input=False)))  # without what needs pictures
    (run.path/'vqvae').mkdir(exist_ok=True)
    for part in ('world', 'vqvae/features.npy'):
        if not (run.path/part).exists(): (run.path/part).symlink_to(base.path/part)
    told = read_json(run.path/'masks'/'done.json')
    cover = (lambda mask, grid: np.ones(grid**2, np.float32)) if kind == 'geometry' else coverage
    shape = (lambda mask: geometry(np.ones_like(mask))) if kind == 'coverage' else geometry
    if told is None: told = replace_masks(base.path/'masks', run.path/'masks', spoilt(data, kind, strength, seed), lambda c: pixels(data, 'truth', c), cover, shape, iou)
    return run, told


def train(run, features):
    "Trains the run's VQ-VAE, or goes on; the same as stage 01 without its scores."
    from motionvla.masks import load_pairs
    from motionvla.training import batch_rows, fit
    from motionvla.vqvae import new_vqvae, pair_batch, training_rows, vqvae_loss
    c, pairs = run.config.vqvae, load_pairs(run)
    rows, model = training_rows(run, pairs), new_vqvae(run, features, pairs)
    fit(model, lambda model, batch: vqvae_loss(model, batch, c),
        lambda step: pair_batch(features, pairs, rows[batch_rows(step, len(rows), c.batch, run.config.seed)]), c, run.path/'vqvae', run.config.seed)
    return model.eval(), pairs, len(rows)


def score(run, model, features, pairs) -> dict:
    "Probes on human clips, fitted on those that were trained on, scored on the others: of both codes, and of the masks' geometry before any training."
    from motionvla.codebook import label_pairs
    from motionvla.latent_measure import code_use, perplexity
    from motionvla.latent_probe import load_truth, one_hot, probe_scores
    human = np.flatnonzero(pairs.body != 'franka')
    columns = {k: getattr(pairs, k)[human] for k in ('clip', 'split', 'source', 'target', 't_source_s', 't_target_s')}
    action, background = label_pairs(model, features, columns['source'], columns['target'], 64, progress=False)
    geometry = np.stack([pairs.geometry[columns['source']], pairs.geometry[columns['target']]], 1)
    geometry = np.nan_to_num((geometry - np.nanmean(geometry, (0, 1)))/(np.nanstd(geometry, (0, 1)) + 1e-6)) if np.isfinite(geometry).any() else 0*geometry
    seen = dict(action=one_hot(action, run.config.vqvae.codes), background=one_hot(background, run.config.vqvae.codes), geometry=geometry.reshape(len(human), -1))
    truth, learned = load_truth(run, columns), columns['split'] == 'train'
    told = {k: probe_scores(x, truth, columns['clip'], learned, ~learned, run.config.codebook.ridge) for k, x in seen.items()}
    out = dict(pairs_scored=int((~learned).sum()), clips_scored=len(set(columns['clip'][~learned])), perplexity=float(perplexity(code_use(action, run.config.vqvae.codes)).mean()))
    for who, ending in (('action', ''), ('background', '_background'), ('geometry', '_geometry')):
        for what, values in told[who].items(): out[f'{what}_r2{ending}'] = values['r2']
    for what, values in told['action'].items(): out |= {f'{what}_low': values['interval'][0], f'{what}_high': values['interval'][1], f'{what}_each': [float(v) for v in values['each']]}
    return out


def one(base, data, features, kind, strength, seed, steps) -> dict:
    "A row of the table."
    start = time.process_time()
    run, told = row_run(base, data, kind, strength, seed, steps)
    model, pairs, n = train(run, features)
    row = dict(kind=kind, strength=strength, seed=seed, **told, steps=steps, batch=run.config.vqvae.batch, pairs_trained=n, **score(run, model, features, pairs))
    row['cpu_s'] = time.process_time() - start
    return row


def plan(seeds: int) -> list:  # of (kind, strength, seed)
    "One seed of everything; then the other seeds, a seed at a time, so that what is there is balanced, and the mildest mistakes last: they hardly show."
    level = lambda i: [(k, s[i]) for k, s in STRENGTHS.items()]
    whole = [(k, 0.) for k in WHOLE]
    return [(*c, 0) for c in whole + level(0) + level(1) + level(2)] + [(*c, n) for n in range(1, seeds) for c in whole[:1] + level(2) + whole[1:] + level(1)] + \
        [(*c, n) for n in range(1, seeds) for c in level(0)]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('_runs/mask_quality'), help='kept; about 400 MB'); parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=300, help='of each training; the demo has 400, and three seeds of that take a third longer'); parser.add_argument('--most', type=int, default=10**6, help='stop after so many rows')
    parser.add_argument('--ious', action='store_true', help='only print the IoU of every kind of mask'); asked = parser.parse_args()
    os.nice(10)
    import cv2, torch
    from motionvla.runs import append_jsonl, read_jsonl
    cv2.setNumThreads(1); torch.set_num_threads(1)
    data = asked.data.absolute(); base = base_run(data); features = prepare(base, data)
    if asked.ious:
        for cell in plan(1): run, told = row_run(base, data, *cell, asked.steps); shutil.rmtree(run.path); print(*cell, {k: round(v, 3) for k, v in told.items()}, flush=True)
        sys.exit()
    file = data/f'rows-{asked.steps}.jsonl'
    for cell in plan(asked.seeds):
        rows = {(r['kind'], r['strength'], r['seed']): r for r in read_jsonl(file)}
        if cell in rows: continue
        if not asked.most: break
        asked.most -= 1
        row = one(base, data, features, *cell, asked.steps); append_jsonl(file, row); rows[cell] = row
        shutil.rmtree(data/'running'/'-'.join(map(str, cell)))
        print(f'{row["kind"]:8}{row["strength"]:6.2f} seed {row["seed"]}: IoU {row["iou_train"]:.2f}, motion {row["motion_r2"]:.3f}, camera {row["camera_r2"]:.3f}, {row["cpu_s"]:.0f} s', flush=True)
        with contextlib.redirect_stdout(io.StringIO()): machine.save('mask_quality', [rows[c] for c in plan(asked.seeds) if c in rows])
