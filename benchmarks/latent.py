"""What do latent actions hold? Ours, its ablations and its rivals on the same clips, features, steps and bits: python benchmarks/latent.py --data DIR --search; python benchmarks/latent.py --data DIR
The world, the features and the rows stand in --data; goes on where it stopped, and several processes may share the work. Methods: nbs/parts/latents, nbs/parts/latent_baselines; scores: nbs/parts/latent_measure."""
import argparse, contextlib, copy, fcntl, gzip, io, itertools, json, os, shutil, sys, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import machine  # before NumPy, torch and MuJoCo: it sets their threads
import numpy as np

os.environ.setdefault('MUJOCO_GL', 'egl')
from motionvla.latents import Method

WORLD = dict(human_clips=600, human_test=.25, trajectories_per_task=30, robot_test=8, other_robots=['fetch'])
#: our own model: name → what of the profile's section vqvae is changed
OURS = dict(
    ours={}, paper=dict(motion_head=0., flow_head=0., difference_input=False, motion_input=False, predict='frame', code_dim=32),
    # a part of ours left out
    no_flow_head=dict(flow_head=0.), no_motion_head=dict(motion_head=0.), no_heads=dict(motion_head=0., flow_head=0.), no_difference_input=dict(difference_input=False),
    no_motion_input=dict(motion_input=False), no_motion_input_or_heads=dict(motion_input=False, motion_head=0., flow_head=0.),
    no_robot_videos=dict(train_on_robot=False), no_crop=dict(crop=0),
    # what the paper's release does otherwise
    release_target_mask=dict(mask_frames='target'), release_hard_coverage=dict(coverage='hard@0.47'), release_no_restart=dict(restart_dead_codes=False, collapse_share=0.),
    release_unaligned=dict(align_augmentation=False), release_background_sees=dict(background_sees_first_frame=True),
    # what is not in ours
    with_coverage_head=dict(coverage_head=1.), with_invariance=dict(invariance=.3), with_opponent=dict(leak=.3), with_gaps=dict(gaps_s=[.6, 1.6]),
    with_change=dict(predict='change'), with_frame=dict(predict='frame'),
    **{f'q_{q}': dict(quantiser=q) for q in ('vq_loss', 'rotation', 'sim', 'fsq', 'residual', 'nsvq', 'dither', 'anneal', 'noisy')},
    **{f'codes_{n}': dict(codes=n) for n in (8, 32, 64, 128, 256)}, **{f'tokens_{n}': dict(tokens=n) for n in (2, 8)}, **{f'dim_{n}': dict(code_dim=n) for n in (2, 8, 32)})
SEARCH_SEED = 100  # of the searches, and of nothing that is scored
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # where a search may go beyond its method's choices
SAME_RECIPE = dict(univla_twice='univla', villax_16='villax', lapa_16='lapa', moto_16='moto')  # another number of bits or steps: the choice of the method's own search
RESULTS = Path(__file__).parent/'results'


def prepare(data: Path) -> dict:
    "World, features and two kinds of masks, flow and truth, that share both; what is there is not made again. name → run."
    from motionvla.encoders import ensure_features
    from motionvla.masks import ensure_masks
    from motionvla.runs import open_run, read_parquet
    base = open_run(data/'base', 'demo', 0, dict(world=WORLD, masks=dict(compare=[])))
    ensure_masks(base); ensure_features(base)
    true = open_run(data/'truth', 'demo', 0, dict(world=WORLD, masks=dict(provider='truth', compare=[])))
    (true.path/'vqvae').mkdir(exist_ok=True)
    for part in ('world', 'vqvae/features.npy'): link(true.path/part, base.path/part)
    ensure_masks(true)
    a, b = (read_parquet(r.path/'masks'/'samples.parquet') for r in (base, true))
    if a['clip'].tolist() != b['clip'].tolist() or not np.array_equal(a['time_s'], b['time_s']):
        raise SystemExit(f'{base.path} and {true.path} sample other frames (a clip was set aside in one of them), so they cannot share features')
    return dict(flow=base, truth=true)


def link(path, target):
    with contextlib.suppress(FileExistsError): path.symlink_to(target)


class Ours(Method):
    "The Hybrid Disentangled VQ-VAE: its action codes, and what they were before they were quantised."
    uses, choices = ('features', 'masks'), tuple(dict(lr=lr, beta=beta) for lr in (1e-3, 3e-3) for beta in (.25, .01))

    def __init__(self, name, config, overrides):
        from motionvla.config import update
        self.name, self.config = name, update(copy.deepcopy(config), overrides)
        self.tokens, self.codes, self.beta = self.config.tokens, self.config.codes, self.config.beta

    def fit(self, data, steps, lr, seed, folder):
        from motionvla.training import batch_rows, fit
        from motionvla.vqvae import bin_vectors, new_vqvae, pair_batch, vqvae_loss, with_gaps
        c = self.config; c.steps, c.lr, c.beta = steps, lr, self.beta
        told = moving(with_gaps(data.pairs, c.gaps_s), data.steps) if c.gaps_s else data.pairs
        rows = np.r_[data.rows, np.arange(len(data.pairs), len(told))]   # further gaps: of training clips alone
        self.net = new_vqvae(SimpleNamespace(path=Path(folder), config=SimpleNamespace(vqvae=c, seed=seed)), data.features, told)
        fit(self.net, lambda model, batch: vqvae_loss(model, batch, c),
            lambda step: pair_batch(data.features, told, rows[batch_rows(step, len(rows), c.batch, seed)]), c, folder, seed, name=self.name)
        self.parameters = sum(p.numel() for p in self.net.eval().parameters() if p.requires_grad)
        if c.quantiser == 'noisy': bin_vectors(self.net, data.features, data.pairs, data.rows)
        return self

    def encode(self, data, numbers):
        import torch
        from motionvla.vqvae import pair_batch
        net, z, codes = self.net, [], []
        with torch.no_grad():
            for part in np.array_split(numbers, 1 + len(numbers)//64):
                b = pair_batch(data.features, data.pairs, part)
                action = net.latents(net.standard(b['source']), net.standard(b['target']), body=b.get('body'))[0]
                z.append(action); codes.append(net.action(action)[1])
        z = torch.cat(z).numpy()
        return dict(codes=torch.cat(codes).numpy(), latents=z.reshape(len(z), -1), hidden=z)

    def recon(self, data, numbers):
        from motionvla.vqvae import evaluate
        return {k[6:]: v for k, v in evaluate(self.net, data.features, data.pairs, numbers).items() if k.startswith('recon_')}


def method_of(name: str, config):
    from motionvla.latent_baselines import rival
    return Ours(name, config, OURS[name]) if name in OURS else rival(name, copy.deepcopy(config))


def names():
    from motionvla.latent_baselines import RIVALS
    return [*OURS, *RIVALS]


class World:
    "Runs, what methods may see of them, and, apart from it, the truth that scores need."
    def __init__(self, data):
        self.data, self.runs, self._seen, self._truth = data, prepare(data), {}, None
        self.config = self.runs['flow'].config.vqvae

    def seen(self, masks, uses):
        from motionvla.latents import latent_data, run_frames
        from motionvla.mask_motion import ensure_motion, sample_coverage
        from motionvla.masks import load_pairs
        from motionvla.vqvae import training_rows
        run, px = self.runs['flow' if masks == 'none' else masks], self.config.image_px*('frames' in uses)
        key = run.path.name, px, 'states' in uses
        if key not in self._seen:
            if px:
                run_frames(self.runs['flow'], px)
                if run is not self.runs['flow']: link(run.path/'vqvae'/f'frames-{px}.npy', self.runs['flow'].path/'vqvae'/f'frames-{px}.npy')
            steps = ensure_motion(run); pairs = moving(replace(load_pairs(run), cover=sample_coverage(run)), steps)
            self._seen[key] = latent_data(run, pairs, training_rows(run, pairs), px, 'states' in uses)
            self._seen[key].steps = steps  # ours may make further pairs
        return self._seen[key]

    def truth(self, pairs):
        from motionvla.latent_probe import load_truth
        if self._truth is None: self._truth = load_truth(self.runs['flow'], {k: getattr(pairs, k) for k in ('clip', 'body', 't_source_s', 't_target_s')})
        return self._truth


def moving(pairs, steps):
    "Pairs with the motion of body and camera, from that of each sample."
    from motionvla.mask_motion import pair_motion_2d
    motion, camera = pair_motion_2d(*steps, pairs.source, pairs.target)
    return replace(pairs, motion=motion, camera=camera)


def score(x, truth, pairs, size, hidden=None, full=True) -> dict:
    "One row of what latent actions hold; `pairs` may have a third split, which plays no part. Not full: motion and camera alone."
    from motionvla.latent_measure import measure
    from motionvla.latent_probe import inputs, probe_scores
    use = np.isin(pairs.split, ('train', 'test'))
    x, clips, body, split = x[use], pairs.clip[use], pairs.body[use], pairs.split[use]
    truth = {k: v[use] if isinstance(v, np.ndarray) else v for k, v in truth.items()}
    if full: return measure(x, truth, clips, body, split, size=size, hidden=None if hidden is None else hidden[use])
    human = np.char.startswith(clips.astype(str), 'human/'); fit = human & (split == 'train')
    told = probe_scores(inputs(x, fit, size), truth, clips, fit, human & (split == 'test'), None)
    return {f'{k}_r2': v['r2'] for k, v in told.items()}


def held_out(seen):
    "The same data for a search: a fifth of the training clips is kept back and takes the place of the test clips."
    from motionvla.latents import kept_back
    seen, pairs = copy.copy(seen), copy.copy(seen.pairs)
    back = kept_back(pairs.clip) & (pairs.split == 'train')
    pairs.split = np.where(back, 'test', np.where(pairs.split == 'test', 'spare', pairs.split))
    seen.pairs, seen.rows = pairs, seen.rows[~back[seen.rows]]
    return seen


def losses(folder) -> dict:
    "First and last loss of the (last) training in a folder; none where nothing was trained."
    from motionvla.training import curves
    found = sorted(Path(folder).rglob('metrics.jsonl'))
    if not found: return {}
    loss = curves(found[-1].parent)['loss']
    return dict(loss_start=float(loss[0]), loss_end=float(loss[-3:].mean()))


def variants(method, told): return {k: told[v] for k, v in (('codes', 'codes'), ('continuous', 'latents')) if told[v] is not None}


def search_one(world, name, masks, steps, choice) -> dict:
    "One choice of a method, trained without the clips kept back and scored on them."
    method, how = method_of(name, world.config), dict(choice); lr = how.pop('lr', world.config.lr)
    seen, start = held_out(world.seen(masks, method.uses)), time.process_time()
    folder = world.data/'search'/f'{name}-{masks}-{steps}'/'-'.join(f'{k}-{v:g}' for k, v in (('lr', lr), ('beta', how.get('beta', 0.))))  # what a training depends on
    method.choose(**how).fit(seen, steps, lr, SEARCH_SEED, folder)
    told = method.encode(seen, np.arange(len(seen.pairs)))
    row = dict(method=name, masks=masks, steps=steps, choice=choice, **losses(folder))
    for variant, x in variants(method, told).items():
        s = score(x, world.truth(seen.pairs), seen.pairs, method.codes, full=False)
        row |= {f'{k}_{variant}': s[f'{k}'] for k in ('motion_r2', 'camera_r2')}
    row |= dict(criterion=row['motion_r2_codes'] - row['camera_r2_codes'], cpu_s=time.process_time() - start)
    print(f'search {name} {masks} {choice}: motion {row["motion_r2_codes"]:.3f}, camera {row["camera_r2_codes"]:.3f}, {row["cpu_s"]:.0f} s', flush=True)
    return row


def to_try(choices, rows) -> list:
    "What a search has still to train: its choices, then a rate further as long as the best one stands at the edge of those tried."
    missing = [c for c in choices if c not in [r['choice'] for r in rows]]
    if missing: return missing
    best, rates = max(rows, key=lambda r: r['criterion'])['choice'], {r['choice'].get('lr') for r in rows}
    if best.get('lr') not in RATES: return []
    at, edges = RATES.index(best['lr']), {min(rates): -1, max(rates): 1}
    further = at + edges.get(best['lr'], 0)
    return [best | dict(lr=RATES[further])] if best['lr'] in edges and 0 <= further < len(RATES) else []


def search(world, name, masks, steps, file):
    "A method's small search; what is in the file is not trained again."
    from motionvla.runs import read_jsonl
    choices = method_of(name, world.config).choices
    def found(): return [r for r in read_jsonl(file) if (r['method'], r['masks'], r['steps']) == (name, masks, steps)]
    if any(r['criterion'] is None for r in found()): return  # a choice of which no more is known
    while left := to_try(choices, found()): append(file, [search_one(world, name, masks, steps, left[0])])
    shutil.rmtree(world.data/'search'/f'{name}-{masks}-{steps}', ignore_errors=True)


def chosen(data, name, masks, steps) -> tuple:
    "The best choice of a method's search (motion R² less camera R² on the clips kept back), and whether there was one."
    from motionvla.runs import read_jsonl
    every, name = read_jsonl(data/'search.jsonl'), SAME_RECIPE.get(name, name)
    of = lambda masks: [r for r in every if (r['method'], r['masks'], r['steps']) == (name, masks, steps)]
    rows = of(masks) or of('flow')  # with true masks, where nothing was searched: as with those of flow
    return (max(rows, key=lambda r: r['criterion'])['choice'], True) if rows else ({}, False)


def score_cell(world, name, masks, seed, steps) -> list:
    "Rows of one training: codes, and what they were before they were quantised."
    method, start = method_of(name, world.config), time.process_time()
    choice, searched = chosen(world.data, name, masks, steps); how = dict(choice); lr = how.pop('lr', world.config.lr)
    seen, folder = world.seen(masks, method.uses), world.data/'running'/f'{name}-{masks}-{seed}-{steps}'
    fitting = time.process_time(); method.choose(**how).fit(seen, steps, lr, seed, folder); fitting = time.process_time() - fitting
    told = method.encode(seen, np.arange(len(seen.pairs)))
    shared = dict(steps=steps, choice=choice, searched=searched, uses=list(method.uses), parameters=method.parameters, pairs_trained=len(seen.rows), fit_s=fitting, **losses(folder))
    if hasattr(method, 'recon'): shared |= {f'recon_{k}': v for k, v in method.recon(seen, np.flatnonzero(seen.pairs.split == 'test')).items()}
    out = []
    for variant, x in variants(method, told).items():
        hidden = told.get('hidden') if variant == 'codes' else None
        row = dict(method=name, variant=variant, masks=masks, seed=seed, bits_nominal=float(method.bits) if variant == 'codes' else None, **shared)
        out.append(row | score(x, world.truth(seen.pairs), seen.pairs, method.codes, hidden))
    for row in out: row['cpu_s'] = time.process_time() - start
    shutil.rmtree(folder, ignore_errors=True)
    return out


@contextlib.contextmanager
def claimed(path: Path):
    "Whether this process may work on a cell: True for the first that asks. A lock whose process is gone is taken over."
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try: file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not left_behind(path): yield False; return
            with contextlib.suppress(FileNotFoundError): os.rename(path, path.with_suffix(f'.stale-{os.getpid()}'))  # of several, one succeeds
            path.with_suffix(f'.stale-{os.getpid()}').unlink(missing_ok=True)
            continue
        os.write(file, str(os.getpid()).encode()); os.close(file)
        try: yield True
        finally: path.unlink(missing_ok=True)
        return
    yield False


def left_behind(path) -> bool:
    try:
        text = path.read_text()
        if not text: return time.time() - path.stat().st_mtime > 10  # made, but nothing written: killed in between
        os.kill(int(text), 0)
    except FileNotFoundError: return False
    except ProcessLookupError: return True
    except PermissionError: pass
    return False


def append(path, rows):
    "Adds rows as one piece, whoever else is writing."
    from motionvla.runs import append_jsonl
    with open(path.with_suffix('.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for row in rows: append_jsonl(path, row)


def plan(asked, world) -> list:  # of (name, masks, seed)
    "A seed at a time, so that what is there is balanced; a method that uses no masks runs once for all masks."
    kinds = lambda name: asked.masks if 'masks' in method_of(name, world.config).uses else ['none']
    return [(name, masks, seed) for seed in ([SEARCH_SEED] if asked.search else range(asked.seeds)) for name in asked.only or names() for masks in kinds(name)]


def publish(name, rows):
    "Complete rows, sums by clip and all, in a file small enough to be committed; the same rows make the same bytes."
    from motionvla.runs import atomic_path
    text = ''.join(json.dumps(r) + '\n' for r in rows).encode()
    with atomic_path(RESULTS/f'{name}.jsonl.gz') as aside: aside.write_bytes(gzip.compress(text, 9, mtime=0))


def go_on(data):
    "Puts published searches and rows where new ones go, if nothing is there yet."
    data.mkdir(parents=True, exist_ok=True)
    for file, name in (('search.jsonl', 'latent_search'), ('rows.jsonl', 'latent_rows')):
        source = RESULTS/f'{name}.jsonl.gz'
        if source.exists() and not (data/file).exists(): (data/file).write_bytes(gzip.decompress(source.read_bytes()))


def work(asked, world):
    from motionvla.runs import read_jsonl
    file = world.data/('search.jsonl' if asked.search else 'rows.jsonl')
    def done(name, masks, seed): return not asked.search and any((r['method'], r['masks'], r['seed'], r['steps']) == (name, masks, seed, asked.steps) for r in read_jsonl(file))
    for cell in plan(asked, world):
        if done(*cell): continue
        with claimed(world.data/'locks'/f'{"search" if asked.search else "score"}-{"-".join(map(str, cell))}-{asked.steps}.lock') as mine:
            if not mine or done(*cell): continue
            name, masks, seed = cell
            if asked.search: search(world, name, masks, asked.steps, file); publish('latent_search', read_jsonl(file)); continue
            rows = score_cell(world, name, masks, seed, asked.steps); append(file, rows)
        for r in rows:
            print(f'{name:26}{r["variant"]:11}{masks:6}seed {seed}: motion {r["motion_r2"]:.3f}, camera {r["camera_r2"]:.3f}, perplexity {r.get("perplexity") or float("nan"):.1f}, {r["cpu_s"]:.0f} s', flush=True)
        save(file, asked.steps)
    if not asked.search: rank(file, asked.steps)


def rows_of(file, steps) -> list:
    from motionvla.runs import read_jsonl
    place = {n: i for i, n in enumerate(names())}
    return sorted((r for r in read_jsonl(file) if r['steps'] == steps), key=lambda r: (place.get(r['method'], 99), r['variant'], r['masks'], r['seed']))


def save(file, steps):
    "The rows without their sums by clip, and all of them, packed."
    publish('latent_rows', rows_of(file, steps))
    with contextlib.redirect_stdout(io.StringIO()): machine.save('latent', [{k: v for k, v in r.items() if k != 'per_clip'} for r in rows_of(file, steps)])


def on_shared_clips(rows) -> list:
    "Rows with the sums of those clips alone that all of them have with the same number of pairs: on another machine an episode or two can end otherwise, and is another clip."
    from motionvla.latent_probe import pack, unpack
    sums = [{k: unpack(v) for k, v in r['per_clip'].items()} for r in rows]
    for key in sorted(set().union(*sums)):
        mine = [s for s in sums if key in s]
        shared = set.intersection(*(set(zip(s[key]['names'].tolist(), s[key]['n'].tolist())) for s in mine))
        if left := {c for s in mine for c, n in zip(s[key]['names'].tolist(), s[key]['n'].tolist()) if (c, n) not in shared}: print(f'{key}: not the same pairs in all rows, left out of the comparison: {", ".join(sorted(left))}', flush=True)
        for s in mine:
            keep = np.array([pair in shared for pair in zip(s[key]['names'].tolist(), s[key]['n'].tolist())])
            s[key] = {k: v[keep] for k, v in s[key].items()}
    return [r | dict(per_clip={k: pack(v) for k, v in s.items()}) for r, s in zip(rows, sums)]


def rank(file, steps):
    "For each kind of masks: methods in order of motion less leak, with intervals and paired tests against ours."
    from motionvla.latent_measure import ranking
    rows, out = on_shared_clips(rows_of(file, steps)), []
    for masks in sorted({r['masks'] for r in rows} - {'none'}):
        for variant in ('codes', 'continuous'):
            mine = {}
            for r in rows:
                if r['masks'] in (masks, 'none') and r['variant'] in (variant, 'codes' if r['method'] == 'random' else variant): mine.setdefault(r['method'], []).append(r)
            if 'ours' not in mine: continue
            out += [dict(masks=masks, variant=variant, **r) for r in ranking(mine, 'ours')]
    if not out: return
    with contextlib.redirect_stdout(io.StringIO()): machine.save('latent_ranking', out)
    for r in out: print(f'{r["masks"]:6}{r["variant"]:11}{r["name"]:26}' + ', '.join(f'{k} {r[k]["mean"]:.3f}' for k in ('motion', 'camera', 'score')) + (f', p {r["p"]:.3f}' if r.get('p') is not None else ''), flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('_runs/latent'), help='kept; about 3 GB'); parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=400, help='of each training'); parser.add_argument('--only', nargs='*', default=[], help='names of methods; all if not given')
    parser.add_argument('--masks', nargs='*', default=['flow', 'truth'], choices=['flow', 'truth']); parser.add_argument('--list', action='store_true', help='only print the names')
    parser.add_argument('--search', action='store_true', help="each method's small search, on clips kept back from training; do it before the rows are made")
    parser.add_argument('--published', action='store_true', help='begin with the searches and rows in benchmarks/results, where --data has none of its own'); asked = parser.parse_args()
    if asked.list: print('\n'.join(names())); sys.exit()
    if wrong := set(asked.only) - set(names()): sys.exit(f'no method {", ".join(sorted(wrong))}: choose from {", ".join(names())}')
    os.nice(10)
    import cv2, torch
    cv2.setNumThreads(1); torch.set_num_threads(1)
    if asked.published: go_on(asked.data)
    work(asked, World(asked.data.absolute()))
