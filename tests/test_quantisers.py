"Quantisers on one process and on two, killed and resumed, in half precision; and the gate that stops a collapse."
import os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest, torch
from conftest import environment
from safetensors.torch import load_file
from torch import nn

from motionvla.quantisers import QUANTISERS, CodebookCollapse, CollapseGate, SharedNorm, fsq_levels, make_quantiser, residual_sizes
from motionvla.training import fit, load_checkpoint, save_checkpoint

CODES, DIM, TOKENS, BATCH = 36, 8, 3, 48   # entries have few vectors each and a short memory, so that some die and start anew


class Autoencoder(nn.Module):
    "Two quantisers, as the VQ-VAE has, a norm of its own and a gate."
    def __init__(self, kind):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(10, TOKENS*DIM, bias=False), nn.Linear(2*TOKENS*DIM, 10)  # a norm follows
        self.one, self.two = (make_quantiser(kind, CODES, DIM, TOKENS, decay=.3, steps=6) for _ in range(2))
        self.gate = CollapseGate(CODES, TOKENS, after=2, every=2)

    def forward(self, x):
        z = self.encoder(x).view(len(x), TOKENS, DIM)
        (a, index, loss), (b, _, more) = self.one(z), self.two(-z)
        return (self.decoder(torch.cat([a, b], 1).flatten(1)) - x).square().mean() + loss + more, index


def train_loss(model, x):
    loss, index = model(x)
    return loss, dict(perplexity=model.gate(index))


def batches(step):
    "Vectors whose middle wanders."
    draw = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 10, generator=draw)*torch.linspace(.2, 2, 10) + step*.3


def settings(steps, save_every): return SimpleNamespace(steps=steps, lr=3e-3, weight_decay=.01, warmup=2, clip=1., save_every=save_every)


def train(kind, folder, steps=12, save_every=12, seed=0):
    torch.manual_seed(seed)
    return fit(Autoencoder(kind), train_loss, batches, settings(steps, save_every), folder, seed=3, precision='fp32', log_every=1)


# ---------------------------------------------------------------- one process and two
@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "A folder of trainings of every kind on one process, and one of the same on two."
    folders = []
    for processes in (1, 2):
        folders.append(tmp_path_factory.mktemp(f'processes{processes}'))
        how = [] if processes == 1 else ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
        # without ACCELERATE_USE_CPU, Accelerate leaves processes without GPUs to themselves
        done = subprocess.run([sys.executable, *how, __file__, folders[-1]], env=environment(PYTHONPATH=str(Path(__file__).parent.parent), ACCELERATE_USE_CPU='1'),
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
    return folders


@pytest.mark.parametrize('kind', QUANTISERS)
def test_two_processes_are_one(both, kind):
    one, two = (load_file(folder/kind/'checkpoint.safetensors') for folder in both)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name == 'random' or name.startswith('optimizer'): continue
        if value.is_floating_point(): torch.testing.assert_close(two[name], value, rtol=1e-3, atol=5e-4, msg=lambda m: f'{name}: {m}')
        else: assert torch.equal(two[name], value), name
    losses = [np.array([float(line.split('"loss": ')[1].split(',')[0]) for line in (folder/kind/'metrics.jsonl').read_text().splitlines()]) for folder in both]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize('kind', ['vq', 'rotation', 'nsvq'])
def test_entries_did_start_anew(both, kind):
    "Or the test above would not have tried it: besides the k-means start, chance was asked at least once more."
    drawn = load_file(both[0]/kind/'checkpoint.safetensors')['model/one.codebook.random.drawn']
    assert int(drawn[1]) > 1 + 12*(kind == 'nsvq')


def test_gradient_through_the_norm(both):
    "The gradient of the sum of all losses by each row, with the batch split unevenly over two processes."
    whole, halves = load_file(both[0]/'norm0.safetensors'), [load_file(both[1]/f'norm{r}.safetensors') for r in range(2)]
    assert [len(h['grad']) for h in halves] == [5, 7]
    for name in ('out', 'grad'): torch.testing.assert_close(torch.cat([h[name] for h in halves]), whole[name])
    for h in halves: torch.testing.assert_close(h['var'], whole['var'])


def norm_rows(rank, world, folder):
    from safetensors.torch import save_file
    x, weight = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0)).double()
    mine = slice(None) if world == 1 else slice(5*rank, 5 + 7*rank)
    norm, x = SharedNorm(4).double(), x[mine].clone().requires_grad_()
    out = norm(x); (out.square()*out*weight[mine]).sum().backward()
    save_file(dict(out=out.detach(), grad=x.grad, var=norm.var), Path(folder)/f'norm{rank}.safetensors')


# ---------------------------------------------------------------- resume
@pytest.mark.parametrize('kind', QUANTISERS)
def test_resume_is_exact(kind, tmp_path):
    "Saved after the start, loaded into a model that began elsewhere: the same numbers to the last bit."
    def begin(seed):
        torch.manual_seed(seed); model = Autoencoder(kind)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)
    def steps(model, optimizer, span):
        out = []
        for step in span:
            loss, index = model(batches(step)); model.gate(index); loss.backward(); optimizer.step(); optimizer.zero_grad()
            out.append((loss.item(), index, torch.rand(1).item()))
        return out
    model, optimizer = begin(0)
    steps(model, optimizer, range(5))
    save_checkpoint(tmp_path/'c.safetensors', model, optimizer, {})
    then = steps(model, optimizer, range(5, 12))
    other, optimizer = begin(1)
    load_checkpoint(tmp_path/'c.safetensors', other, optimizer)
    again = steps(other, optimizer, range(5, 12))
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(then, again))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('kind', ['anneal', 'vq_loss'])
def test_resume_through_fit(kind, tmp_path):
    whole = train(kind, tmp_path/'whole')
    train(kind, tmp_path/'parts', save_every=5)
    checkpoint = tmp_path/'parts'/'checkpoint.safetensors'
    def stop(step):
        if step == 8: raise KeyboardInterrupt
        return batches(step)
    torch.manual_seed(0); model = Autoencoder(kind); checkpoint.unlink(); (tmp_path/'parts'/'metrics.jsonl').unlink()
    with pytest.raises(KeyboardInterrupt): fit(model, train_loss, stop, settings(12, 5), tmp_path/'parts', seed=3, precision='fp32', log_every=1)
    assert checkpoint.exists() and train(kind, tmp_path/'parts', save_every=5, seed=9)['loss'] == whole['loss']


# ---------------------------------------------------------------- precision, evaluation, wrong input
@pytest.mark.parametrize('kind', QUANTISERS)
def test_bf16(kind):
    torch.manual_seed(0); q = make_quantiser(kind, 16, DIM, TOKENS, steps=4); z = torch.randn(64, TOKENS, DIM).bfloat16()
    state = {k: v.clone() for k, v in q.state_dict().items()}
    plain = q(z.float())
    q.load_state_dict(state); z.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16): half = q(z)
    assert torch.equal(half[1], plain[1]) and half[0].dtype == torch.float32 and torch.equal(half[0], plain[0])
    (half[0].square().sum() + half[2]).backward(); assert z.grad.dtype == torch.bfloat16 and torch.isfinite(z.grad).all()


@pytest.mark.parametrize('kind', QUANTISERS)
def test_evaluation_sees_one_pair_at_a_time(kind):
    torch.manual_seed(0); q = make_quantiser(kind, 16, DIM, TOKENS, steps=4)
    for _ in range(3): q(torch.randn(64, TOKENS, DIM))
    q.eval(); z, state = torch.randn(40, TOKENS, DIM), {k: v.clone() for k, v in q.state_dict().items()}
    out, index, _ = q(z)
    alone = torch.cat([q(row[None])[1] for row in z])
    assert torch.equal(index, alone) and torch.equal(out, q.embed(index))
    assert all(torch.equal(v, state[k]) for k, v in q.state_dict().items())
    assert all(torch.is_tensor(v) for v in q.state_dict().values())


def test_an_untrained_one_is_not_started_by_looking():
    q = make_quantiser('vq', 16, DIM, TOKENS).eval(); before = q.codebook.embed.clone()
    q(torch.randn(50, TOKENS, DIM)); assert torch.equal(q.codebook.embed, before) and not q.codebook.initted


@pytest.mark.parametrize('codes', range(2, 260))
def test_sizes(codes):
    def product(f):
        try: return int(np.prod(f(codes)))
        except ValueError as e: assert str(codes) in str(e); return None
    possible = all(p <= 7 or codes % p for p in range(2, codes + 1) if all(p % i for i in range(2, p)))
    assert product(fsq_levels) == (codes if possible else None)
    assert product(residual_sizes) == (codes if any(codes % n == 0 for n in range(2, codes)) else None)


@pytest.mark.parametrize('wrong, say', [
    (lambda: make_quantiser('vqvae', 16, 8, 4), 'did you mean vq'), (lambda: make_quantiser('vq', 1, 8, 4), 'two codes'),
    (lambda: make_quantiser('anneal', 16, 8, 4), 'needs steps'), (lambda: make_quantiser('vq', 16, 8, 4)(torch.randn(2, 8, 4)), 'takes b 4 8'),
    (lambda: make_quantiser('vq', 16, 8, 4)(torch.randn(1, 4, 8)), 'larger'), (lambda: make_quantiser('fsq', 16, 8, 4).embed(torch.full((2, 4), 16)), 'between 0 and 15'),
    (lambda: make_quantiser('noisy', 16, 8, 4).eval().fit_bins(torch.randn(9, 4, 8)), 'too few'), (lambda: make_quantiser('noisy', 16, 8, 4).fit_bins(torch.randn(99, 4, 8)), 'eval')])
def test_wrong_input(wrong, say):
    with pytest.raises(ValueError, match=say): wrong()


# ---------------------------------------------------------------- the gate
def test_gate_counts_in_a_row():
    one, all_ = torch.zeros(64, 2, dtype=torch.int64), torch.arange(64)[:, None].expand(64, 2) % 8
    gate = CollapseGate(8, 2, after=10, patience=3, every=2, decay=0.)
    for _ in range(10): gate(one)                        # not yet
    for _ in range(4): gate(one)                         # two failed checks
    for _ in range(2): assert gate(all_) == pytest.approx(8)   # a good one in between
    state = {k: v.clone() for k, v in gate.state_dict().items()}
    for _ in range(5): gate(one)
    with pytest.raises(CodebookCollapse, match=r'1\.0 of 8 .* 3 checks in a row up to step 22.*restart=True'): gate(one)
    again = CollapseGate(8, 2, after=10, patience=3, every=2, decay=0.); again.load_state_dict(state)
    for _ in range(5): again(one)
    again.eval()
    for _ in range(9): again(one)                        # evaluation neither counts nor checks
    with pytest.raises(CodebookCollapse): again.train()(one)


def test_gate_stops_fit(tmp_path):
    torch.manual_seed(0); model = Autoencoder('vq')
    model.gate = CollapseGate(CODES, TOKENS, share=.99, after=4, patience=2, every=2)
    with pytest.raises(CodebookCollapse, match='up to step 8'): fit(model, train_loss, batches, settings(12, 5), tmp_path, precision='fp32')
    assert (tmp_path/'checkpoint.safetensors').exists()


if __name__ == '__main__':   # what the fixture `both` starts, once alone and once as two
    folder = Path(sys.argv[1])
    for name in QUANTISERS: train(name, folder/name)
    import torch.distributed as dist
    from accelerate.state import AcceleratorState
    several = dist.is_initialized()
    assert several == ('WORLD_SIZE' in os.environ) and (not several or AcceleratorState().num_processes == 2), 'they were to train together'
    norm_rows(dist.get_rank() if several else 0, dist.get_world_size() if several else 1, folder)
    if several: dist.destroy_process_group()
