"Memory of loader workers over many clips, and of an index of a million pairs: python benchmarks/loader.py"
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

from machine import save  # before NumPy: it sets its threads
import numpy as np

CLIPS, GAP_S, EVERY_S, PER_VISIT = 10_000, 1., .1, 50


def make_folder(root: Path, clips: int, distinct: int = 20):
    "A folder of short videos of 96 px: a few distinct ones, each under many names (links cost no disk), with a table of instructions."
    from motionvla.video import write_video
    rng, root = np.random.default_rng(0), root/'folder'
    scene = np.kron(rng.integers(0, 256, (32, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for k in range(distinct):
        walk = rng.integers(0, 2, (112, 2)).cumsum(0)
        write_video(root/f'{k}.mp4', (scene[y:y + 96, x:x + 96] for y, x in walk), 10)
    for i in range(distinct, clips): os.link(root/f'{i % distinct}.mp4', root/f'{i}.mp4')
    (root/'instructions.csv').write_text('file,instruction\n' + ''.join(f'{i}.mp4,move the window of clip {i} to the right and down\n' for i in range(clips)))
    return root


def make_lerobot(root: Path, episodes: int):
    "Episodes of a robot with states and actions of 14 numbers, many to a file."
    from motionvla.lerobot import array_clip, write_lerobot
    rng = np.random.default_rng(1)
    scene = np.kron(rng.integers(0, 256, (32, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    def made():
        for i in range(episodes):
            pictures = np.stack([scene[y:y + 96, x:x + 96] for y, x in rng.integers(0, 2, (112, 2)).cumsum(0)])
            yield array_clip(f'{i}', f'task {i % 50}', dict(front=pictures), 10, rng.normal(size=(112, 14)), rng.normal(size=(112, 14)))
    write_lerobot(made(), root/'lerobot', video_mb=20)
    return root/'lerobot'


def held() -> float:
    "Memory that this process wrote and nobody shares, MB (Linux). Pages of libraries are not in it: whose they are depends on who else runs."
    return sum(int(line.split()[1]) for line in open('/proc/self/smaps_rollup') if line.startswith(('Private_Dirty', 'Swap:'))) / 1e3


class Watched:
    "Visits in a random order; every tenth carries what its worker holds."
    def __init__(self, frames, order): self.frames, self.order = frames, order
    def __len__(self): return len(self.order)
    def __getitem__(self, i): return self.frames[int(self.order[i])], os.getpid(), held() if i % 10 < 2 else None  # two workers take turns


def watch(root: Path, pairs: Path, visits: int, per_visit: int, start: str) -> dict:
    """What two workers hold at the start, after 10⁴ and after 10⁵ pairs of all (the larger of the two).
    `start` none: this process does it itself, so that no page is a copy of a parent's."""
    from torch.utils.data import DataLoader
    from motionvla.datasets import PairFrames, open_dataset, open_pairs
    frames = PairFrames(open_dataset(root), open_pairs(pairs), size=64, per_visit=per_visit)
    order = np.concatenate([np.random.default_rng(e).permutation(len(frames)) for e in range(-(-visits // len(frames)))])[:visits]
    at, seen, first, began, aside = {}, 0, {}, time.perf_counter(), 0
    how = {'num_workers': 0} if start == 'none' else {'num_workers': 2, 'multiprocessing_context': start}
    for [(item, pid, mb)] in DataLoader(Watched(frames, order), batch_size=1, collate_fn=list, **how):
        seen += len(item['times']); aside += bool(item['reason'])
        if mb is None: continue
        first.setdefault(pid, mb)
        for mark in (1_000, 10_000, 100_000):
            if seen <= mark: at.setdefault(mark, {})[pid] = mb
    most = lambda k: max(at[k].values())
    return dict(what=f'{root.name}, {start}', clips=len(frames), pairs=seen, seconds=time.perf_counter() - began, start_mb=max(first.values()), mb_1k=most(1_000),
                mb_10k=most(10_000), mb_100k=most(100_000), set_aside=aside)


def index_alone(path: Path) -> dict:
    "Opens the index, then walks through it; the memory is that of a process that does nothing else."
    import pyarrow.parquet
    from motionvla.datasets import open_pairs
    before, began = held(), time.perf_counter()
    pairs = open_pairs(path); pairs.visit(pairs.visits // 2)
    seconds, seen, at = time.perf_counter() - began, 0, dict(start=held() - before)
    for _, s, _ in pairs:
        seen += len(s)
        for mark in (1_000, 10_000, 100_000):
            if seen >= mark and mark not in at: at[mark] = held() - before
    return dict(what='index, opened', clips=pairs.visits, pairs=seen, seconds=seconds, start_mb=at['start'], mb_1k=at[1_000], mb_10k=at[10_000], mb_100k=at[100_000], set_aside=0)


def make_all(root: Path):
    "The data and their indices: root/NAME and root/NAME.parquet."
    from motionvla.datasets import open_dataset, pair_index
    for made in (make_folder(root, CLIPS), make_lerobot(root, 400)): pair_index(open_dataset(made), GAP_S, EVERY_S, made.with_suffix('.parquet'))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(); parser.add_argument('--one', nargs='+'); parser.add_argument('--data', type=Path); parser.add_argument('--start', default='fork', choices=('fork', 'spawn'))
    asked = parser.parse_args()
    def alone(*words): return json.loads(subprocess.run([sys.executable, __file__, '--one', *map(str, words)], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    if asked.one:  # each measurement in a process of its own
        what, *rest = asked.one
        if what == 'make': make_all(Path(rest[0])); print('{}')
        elif what == 'index': print(json.dumps(index_alone(Path(rest[0]))))
        else: print(json.dumps(watch(Path(rest[0]), Path(rest[1]), int(rest[2]), int(rest[3]), rest[4])))
    else:
        with tempfile.TemporaryDirectory() as d:
            root = asked.data or Path(d)
            if not (root/'lerobot.parquet').exists(): alone('make', root)
            rows = [alone('index', root/'folder.parquet')]
            for name in ('folder', 'lerobot'):
                for start in (asked.start, 'none'): rows.append(alone('watch', root/name, root/f'{name}.parquet', 101_000 // PER_VISIT, PER_VISIT, start))
            save('loader', rows)
