"The driver of benchmarks/latent.py: who works on what, and what a search may see."
import importlib.util, os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__).parent.parent/'benchmarks'


@pytest.fixture(scope='module')
def bench():
    sys.path.insert(0, str(HERE))
    spec = importlib.util.spec_from_file_location('latent_benchmark', HERE/'latent.py')
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    sys.path.remove(str(HERE))
    return module


def test_a_cell_belongs_to_one(bench, tmp_path):
    lock = tmp_path/'locks'/'cell.lock'
    with bench.claimed(lock) as first, bench.claimed(lock) as second: assert first and not second
    with bench.claimed(lock) as again: assert again and int(lock.read_text()) == os.getpid()
    assert not lock.exists()


def test_a_lock_of_a_dead_process_is_taken_over(bench, tmp_path):
    lock, gone = tmp_path/'cell.lock', subprocess.Popen(['true']); gone.wait()
    lock.write_text(str(gone.pid))
    with bench.claimed(lock) as mine: assert mine
    lock.write_text('')   # made this moment: its process is about to write
    with bench.claimed(lock) as mine: assert not mine
    os.utime(lock, (time.time() - 60,)*2)
    with bench.claimed(lock) as mine: assert mine
    assert not list(tmp_path.iterdir())


def test_an_error_frees_the_cell(bench, tmp_path):
    lock = tmp_path/'cell.lock'
    with pytest.raises(RuntimeError), bench.claimed(lock): raise RuntimeError
    with bench.claimed(lock) as mine: assert mine


def test_a_search_never_sees_the_scored_clips(bench):
    clip = np.repeat([f'human/{i:06}' for i in range(200)], 3)
    split = np.where(np.arange(600) < 450, 'train', 'test')
    seen = SimpleNamespace(pairs=SimpleNamespace(clip=clip, split=split), rows=np.flatnonzero(split == 'train'))
    kept = bench.held_out(seen)
    assert set(kept.pairs.split[450:]) == {'spare'} and (kept.pairs.split[kept.rows] == 'train').all()
    back = kept.pairs.split == 'test'
    assert 40 < back.sum() < 150 and not back[450:].any() and not set(clip[back]) & set(clip[kept.rows])
    assert (split == seen.pairs.split).all() and len(seen.rows) == 450, 'the data themselves stay as they are'


def test_the_best_choice_wins(bench, tmp_path):
    for lr, criterion in ((3e-4, .1), (1e-3, .3), (3e-3, .2)):
        bench.append(tmp_path/'search.jsonl', [dict(method='masklam', masks='flow', steps=9, choice=dict(lr=lr), criterion=criterion)])
    assert bench.chosen(tmp_path, 'masklam', 'flow', 9) == (dict(lr=1e-3), True)
    assert bench.chosen(tmp_path, 'masklam', 'truth', 9) == (dict(lr=1e-3), True), 'with true masks, where nothing was searched: as with those of flow'
    bench.append(tmp_path/'search.jsonl', [dict(method='masklam', masks='truth', steps=9, choice=dict(lr=3e-3), criterion=.1), dict(method='moto', masks='none', steps=9, choice=dict(lr=3e-4), criterion=None)])
    assert bench.chosen(tmp_path, 'masklam', 'truth', 9) == (dict(lr=3e-3), True)
    assert bench.chosen(tmp_path, 'moto_16', 'none', 9) == (dict(lr=3e-4), True), 'the same recipe with another number of bits'
    assert bench.chosen(tmp_path, 'lapo', 'none', 9) == ({}, False)


def test_a_search_goes_on_at_the_edge(bench):
    choices = tuple(dict(lr=lr, beta=beta) for lr in (1e-3, 3e-3) for beta in (.25, .01))
    rows, tried = [], []
    while left := bench.to_try(choices, rows):
        tried.append(left[0]); rows.append(dict(choice=left[0], criterion=-abs(left[0]['lr'] - 3e-4) - left[0]['beta']/100))
    assert tried == [*choices, dict(lr=3e-4, beta=.01), dict(lr=1e-4, beta=.01)], 'as long as the best rate is the lowest'
    rows = [dict(choice=c, criterion=c['lr']) for c in choices]
    assert bench.to_try(choices, rows) == [dict(lr=1e-2, beta=.25)], 'and upwards'
    assert bench.to_try(choices, rows[1:]) == [choices[0]], 'what is there is not trained again'
    assert bench.to_try(({},), [dict(choice={}, criterion=.1)]) == [] and bench.to_try(({},), []) == [{}], 'a method without rates'


def test_published_rows_are_gone_on_from(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'RESULTS', tmp_path/'results'); (tmp_path/'results').mkdir()
    rows = [dict(method='ours', steps=9, seed=s, per_clip=dict(motion='0.1 0.2')) for s in range(3)]
    bench.publish('latent_rows', rows); first = (tmp_path/'results'/'latent_rows.jsonl.gz').read_bytes()
    bench.publish('latent_rows', rows); assert (tmp_path/'results'/'latent_rows.jsonl.gz').read_bytes() == first, 'the same rows, the same bytes'
    from motionvla.runs import read_jsonl
    bench.go_on(tmp_path/'new'); assert read_jsonl(tmp_path/'new'/'rows.jsonl') == rows and not (tmp_path/'new'/'search.jsonl').exists()
    bench.append(tmp_path/'new'/'rows.jsonl', rows[:1]); bench.go_on(tmp_path/'new')
    assert len(read_jsonl(tmp_path/'new'/'rows.jsonl')) == 4, 'what is there stays'


def test_a_method_without_masks_runs_once_for_all(bench):
    from motionvla.config import VQVAEConfig
    asked = SimpleNamespace(masks=['flow', 'truth'], search=False, seeds=2, only=['ours', 'lapo', 'masklam', 'linear'])
    cells = bench.plan(asked, SimpleNamespace(config=VQVAEConfig()))
    assert [c for c in cells if c[2] == 0] == [('ours', 'flow', 0), ('ours', 'truth', 0), ('lapo', 'none', 0), ('masklam', 'flow', 0), ('masklam', 'truth', 0), ('linear', 'none', 0)]
    assert len(cells) == 12 and len(bench.names()) > 15


def test_rows_of_other_episodes_are_compared_on_the_clips_they_share(bench, capsys):
    from motionvla.latent_probe import clip_sums, compare, pack, unpack
    rng = np.random.default_rng(0); clips = np.repeat([f'human/{i:06d}' for i in range(8)], 5)
    def row(seed, some):
        y = rng.normal(size=(len(some), 3)); sums = clip_sums(y, y + .5*rng.normal(size=y.shape), some)
        return dict(seed=seed, per_clip={'motion': pack(sums), 'camera': pack(sums)})
    here, there = [row(s, clips) for s in range(2)], [row(s, clips[1:]) for s in range(2)]  # elsewhere the first episode ended sooner
    with pytest.raises(ValueError, match='different clips'): compare(here, there)
    mended = bench.on_shared_clips(here + there); compare(mended[:2], mended[2:])
    assert all(unpack(r['per_clip']['motion'])['names'].tolist() == [f'human/{i:06d}' for i in range(1, 8)] for r in mended) and 'human/000000' in capsys.readouterr().out
    assert bench.on_shared_clips(here) == here  # nothing is left out where all agree
