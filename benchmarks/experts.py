"""How often the scripted experts succeed, for every body and every task that it can do: python benchmarks/experts.py --workers 2
Goes on where it stopped; --again BODY … makes the rows of some bodies anew."""
import argparse, contextlib, hashlib, io, json, subprocess, sys, time
from pathlib import Path

import machine  # before NumPy and MuJoCo: it sets their threads
import numpy as np

STREAM = 20261124  # the start states are nobody else's: plans are mended on others


def code(body: str) -> str:
    "A short name for the sources that decide what happens: rows made by other sources can be told."
    import motionvla
    folder, own = Path(motionvla.__file__).parent, dict(hand='hand', left_hand='hand', franka='franka', fetch='fetch franka', two_hands='hand pairs', two_franka='franka pairs')
    names = ['tasks', 'scenes', 'fixtures', 'meshes', 'tabletop', 'experts', *own.get(body, '').split()]
    return hashlib.sha256(b''.join((folder/f'{n}.py').read_bytes() for n in names)).hexdigest()[:10]


def measure(body: str, # one of tabletop.BODIES
            verb: str, # a task that it can do
            n: int,    # episodes
           ) -> dict:
    "One cell of the table. No pictures are taken."
    from motionvla.bodies import body_manner
    from motionvla.eval import wilson
    from motionvla.experts import run_expert
    from motionvla.scenes import sample_scene
    from motionvla.tabletop import BODIES, Tabletop
    from motionvla.tasks import VERBS, sample_task
    env, done, seconds, failed, start = None, 0, [], [], time.perf_counter()
    for i in range(n):
        rng = np.random.default_rng([STREAM, list(BODIES).index(body), VERBS.index(verb), i])
        task = sample_task(rng, verb)
        scene = sample_scene(rng, task, body)
        if env is None: env = Tabletop(scene)
        else: env.reset(scene)
        episode = run_expert(env, task, rng, body_manner(rng, body), frames=False)
        done += bool(episode.success); seconds.append(env.time_s)
        if not episode.success: failed.append(i)
    low, high = wilson(done, n)
    return dict(body=body, task=verb, episodes=n, successes=done, rate=done/n, low=low, high=high, median_s=float(np.median(seconds)), longest_s=max(seconds),
                cpu_s=(time.perf_counter() - start)/n, code=code(body), failed=failed)


def cells() -> list: # of (body, verb)
    "What can be done by whom; a body whose module is missing is left out, with a word."
    from motionvla.bodies import body_verbs
    from motionvla.tabletop import BODIES
    found = []
    for body in BODIES:
        try: found += [(body, v) for v in body_verbs(body)]
        except ImportError as e: print(f'{body} is left out: {e}', file=sys.stderr)
    return found


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--episodes', type=int, default=200); parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--bodies', nargs='*', help='only these'); parser.add_argument('--again', nargs='*', default=[], help='make the rows of these bodies anew')
    parser.add_argument('--stale', action='store_true', help='make rows anew whose sources have changed'); parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one: print(json.dumps(measure(*asked.one, asked.episodes))); sys.exit()
    file = machine.RESULTS/'experts.json'
    rows = {(r['body'], r['task']): r for r in json.loads(file.read_text())['rows']} if file.exists() else {}
    wanted = cells()
    good = lambda r: r['episodes'] == asked.episodes and r['body'] not in asked.again and not (asked.stale and r['code'] != code(r['body']))
    todo = [c for c in wanted if (not asked.bodies or c[0] in asked.bodies) and not (c in rows and good(rows[c]))]
    running, made = [], len(todo)
    def keep(cell, process): # a cell at a time is written, so that nothing is lost
        out, _ = process.communicate()
        if process.returncode: print('failed:', *cell, file=sys.stderr); return
        rows[cell] = json.loads(out.strip().splitlines()[-1])
        with contextlib.redirect_stdout(io.StringIO()): machine.save('experts', [rows[c] for c in wanted if c in rows])
        r = rows[cell]; print(f'{cell[0]:12}{cell[1]:20}{r["successes"]:4} of {r["episodes"]}, {r["median_s"]:5.1f} s', flush=True)
    while todo or running:
        while todo and len(running) < asked.workers:
            cell = todo.pop(0)
            running.append((cell, subprocess.Popen([sys.executable, __file__, '--episodes', str(asked.episodes), '--one', *cell], stdout=subprocess.PIPE, text=True)))
        ended = [r for r in running if r[1].poll() is not None]
        for r in ended: keep(*r); running.remove(r)
        if not ended: time.sleep(.2)
    print(f'{made} of {len(wanted)} cells were to be made')
