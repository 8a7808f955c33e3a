"""Does the same motion look alike whatever the body? A ridge probe from mask geometry to motion in the camera frame, fitted on hands: python benchmarks/probe.py
Method: nbs/parts/bodies."""
import argparse, json, subprocess, sys, tempfile
from pathlib import Path

from machine import save  # before NumPy and MuJoCo: it sets their threads
import numpy as np

STREAM = 20261124   # the start states are nobody else's
WEAK = .001         # a penalty next to none, for comparison


def collect(body: str, n: int, stream: int, path: str):
    "Pairs of n clips of a body, with the number of the clip and the arm, to a file."
    from motionvla.bodies import body_episodes, probe_pairs
    from motionvla.tabletop import BODIES, make_body
    it, parts = make_body(body), []
    for k, episode in enumerate(body_episodes(it, n, [STREAM, stream, list(BODIES).index(body)])):
        for arm, (x, y) in probe_pairs(episode, it.arms).items(): parts.append((x, y, np.full(len(x), k), np.full(len(x), arm)))
    np.savez(path, **dict(zip(('x', 'y', 'clip', 'arm'), (np.concatenate(v) for v in zip(*parts)))))


def answers(probes: dict, rows: dict) -> np.ndarray:
    "What the probe of each side says, `n 3`."
    guess = np.zeros_like(rows['y'])
    for arm, probe in probes.items():
        at = rows['arm'] == arm
        if at.any(): guess[at] = probe(rows['x'][at])
    return guess


def interval(y, guess, clip, rounds=1000, seed=0) -> tuple:
    "Middle 95 % of the mean R² when whole clips are drawn again."
    from motionvla.bodies import explained
    rng, at = np.random.default_rng(seed), [np.flatnonzero(clip == c) for c in np.unique(clip)]
    draws = (np.concatenate([at[j] for j in rng.integers(len(at), size=len(at))]) for _ in range(rounds))
    return tuple(float(q) for q in np.quantile([explained(y[i], guess[i]).mean() for i in draws], [.025, .975]))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--fit', type=int, default=70, help='clips of each hand to fit on'); parser.add_argument('--score', type=int, default=56, help='clips a body')
    parser.add_argument('--pairs', help='a folder that keeps the pairs: what is in it is not made again')
    parser.add_argument('--one', nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one: body, n, stream, path = asked.one; collect(body, int(n), int(stream), path); sys.exit()
    from motionvla.bodies import explained, fit_ridge
    from motionvla.tabletop import BODIES
    with tempfile.TemporaryDirectory() as folder:
        if asked.pairs: folder = asked.pairs; Path(folder).mkdir(parents=True, exist_ok=True)
        def rows(body, n, stream): # a process each: one renderer a process
            path = Path(folder)/f'{body}{stream}.npz'
            if not path.exists() and subprocess.run([sys.executable, __file__, '--one', body, str(n), str(stream), str(path)]).returncode: return None
            with np.load(path) as z: return {k: z[k] for k in z}
        fit = {'right': rows('hand', asked.fit, 0), 'left': rows('left_hand', asked.fit, 0)}
        probes = {penalty: {arm: fit_ridge(r['x'], r['y'], *penalty) for arm, r in fit.items()} for penalty in ((), (WEAK,))}
        table = []
        for body in BODIES:
            if (r := rows(body, asked.score, 1)) is None: print(f'{body} is left out', file=sys.stderr); continue
            guess, weak = answers(probes[()], r), answers(probes[(WEAK,)], r)
            right, down, forward = explained(r['y'], guess)
            low, high = interval(r['y'], guess, r['clip'])
            table.append(dict(body=body, fit_clips=asked.fit, clips=len(np.unique(r['clip'])), pairs=len(r['y']), right=right, down=down, forward=forward,
                              mean=(right + down + forward) / 3, low=low, high=high, weak_penalty=explained(r['y'], weak).mean()))
    save('probe', table)
