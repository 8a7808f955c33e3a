"What a benchmark ran on, and where its figures go."
import json, os, platform, sys, time
from pathlib import Path

RESULTS = Path(__file__).parent/'results'
for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'LP_NUM_THREADS'): os.environ.setdefault(name, '1')  # one core, also for Mesa


def machine() -> dict:
    "Processor, cores, system and versions."
    from importlib.metadata import version
    model = next((l.split(':')[1].strip() for l in Path('/proc/cpuinfo').read_text().splitlines() if l.startswith('model name')), platform.processor()) \
        if Path('/proc/cpuinfo').exists() else platform.processor()
    return dict(processor=model, cores=os.cpu_count(), python=platform.python_version(), load=round(os.getloadavg()[0], 2),
                **{p: version(p) for p in ('torch', 'mujoco', 'numpy')})


class Clock:
    "Adds up the seconds of named pieces, nested ones counted once: a piece's time excludes the pieces inside it."
    def __init__(self): self.seconds, self._inner = {}, []

    def wrap(self, owner, name, piece):
        "Replaces a function of a module or class by one that is timed."
        inner = getattr(owner, name)
        def timed(*args, **kwargs):
            start = time.process_time(); self._inner.append(0.)
            try: return inner(*args, **kwargs)
            finally:
                whole = time.process_time() - start
                self.seconds[piece] = self.seconds.get(piece, 0.) + whole - self._inner.pop()
                if self._inner: self._inner[-1] += whole
        setattr(owner, name, timed)


def save(name: str, rows: list):
    "Prints the rows as a table and writes them, with the machine, to results/NAME.json."
    keys = list(rows[0])
    print('  '.join(f'{k:>14}' for k in keys))
    for row in rows: print('  '.join(f'{v:>14.3g}' if isinstance(v, float) else f'{str(v):>14}' for v in row.values()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/f'{name}.json').write_text(json.dumps(dict(command=f'python benchmarks/{Path(sys.argv[0]).name}', machine=machine(), rows=rows), indent=1) + '\n')
