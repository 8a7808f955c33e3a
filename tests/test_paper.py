"The profile paper: the sizes, losses and numbers of the paper's first stage, part by part, with an encoder of the real class and size. Nothing is downloaded."
import math, os, subprocess, sys

import numpy as np
import pytest
from conftest import ROOT, environment

W, N, D, K, C, B = 768, 256, 768, 4, 128, 12   # width, patches, channels, queries of each kind, width of an entry, blocks
norm, linear = lambda w: 2*w, lambda a, b: a*b + b
attention, mlp = norm(W) + linear(W, 3*W) + linear(W, W), norm(W) + linear(W, 4*W) + linear(4*W, W)
#: parameters by hand: name of a part → how many
PARTS = {'encoder.patch': linear(D, W), 'encoder.place': N*W, 'encoder.frame': 2*W, 'encoder.queries': 2*K*W,
         'encoder.blocks': B*(2*attention + mlp), 'encoder.norm': norm(W), 'to_action': linear(W, C), 'to_background': linear(W, C),
         'action': 16*C, 'background': 16*C,
         'decoder.action': linear(C, W), 'decoder.background': linear(C, W), 'decoder.patch': linear(D, W), 'decoder.blank': W, 'decoder.place': N*W,
         'decoder.slot': 2*K*W, 'decoder.untold': 2*K*W, 'decoder.blocks': B*(attention + mlp), 'decoder.norm': norm(W), 'decoder.change': linear(W, D)}
#: DINOv2 ViT-B/14: patches, class and mask token, registers, positions of 37² patches and the class token, blocks with layer scale, norm
DINOV2 = linear(3*14*14, 768) + 768 + 768 + 4*768 + (37**2 + 1)*768 + 12*(2*norm(768) + 4*linear(768, 768) + linear(768, 3072) + linear(3072, 768) + 2*768) + norm(768)


@pytest.fixture(scope='module')
def config():
    from motionvla.config import load_config
    return load_config('paper')


@pytest.fixture(scope='module')
def encoder(config):
    "The real class at the real size, weights drawn at random; it sees 224 px."
    import torch
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
    from motionvla.encoders import DINOv2, frozen
    torch.manual_seed(0)
    return frozen(DINOv2(config.vqvae.encoder, config.vqvae.image_px, Dinov2WithRegistersModel(Dinov2WithRegistersConfig(patch_size=14, image_size=518))))


@pytest.fixture(scope='module')
def features(encoder):
    "Frozen features of two random pictures, as the run keeps them."
    import torch
    pictures = np.kron(np.random.default_rng(0).integers(0, 255, (2, 28, 28, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    return encoder(torch.from_numpy(pictures)).half().numpy()


@pytest.fixture(scope='module')
def pairs():
    from motionvla.masks import Pairs
    one = lambda *v: np.array(v)
    coverage = np.random.default_rng(1).integers(0, 256, (1, N), dtype=np.uint8)
    return Pairs(pair=one(0), clip=one('human/0'), body=one('hand'), split=one('train'), source=one(0), target=one(1), t_source_s=one(0.), t_target_s=one(1.), instruction=one(''),
                 coverage=coverage, geometry=np.random.default_rng(2).random((2, 5)).astype(np.float32), samples={})


@pytest.fixture(scope='module')
def model(config, features, pairs, tmp_path_factory):
    from motionvla.runs import Run
    from motionvla.vqvae import new_vqvae
    return new_vqvae(Run(tmp_path_factory.mktemp('paper')/'run', config), features, pairs)


def test_numbers(config):
    c, m = config.vqvae, config.masks
    assert (c.lr, c.weight_decay, c.clip, c.batch, c.beta) == (1e-4, 1e-2, .1, 128, .25) and 15_000 <= c.steps <= 20_000
    assert (c.encoder, c.image_px, c.width, c.heads, c.encoder_blocks, c.decoder_blocks) == ('facebook/dinov2-with-registers-base', 224, 768, 12, 12, 12)
    assert (c.tokens, c.codes, c.code_dim) == (4, 16, 128) and c.decode_share == 1 and c.crop == 0 and not c.background_sees_first_frame
    assert not any((c.motion_head, c.flow_head, c.coverage_head, c.invariance, c.leak)) and c.quantiser == 'vq_loss', "the paper's losses alone: masked, global, codebook and commitment"
    assert c.predict == 'frame' and not c.difference_input and not c.motion_input and not c.gaps_s
    assert (m.gap_s, m.grid, m.provider, m.robot_provider) == (1., 16, 'sam2', 'roboengine')


def test_the_encoder(encoder, features):
    assert sum(p.numel() for p in encoder.parameters()) == DINOV2 == 86_583_552 and not any(p.requires_grad for p in encoder.parameters())
    assert features.shape == (2, N, D) and encoder.extra == 5, 'the class token and four registers are left out'
    rows = features.astype(np.float32)
    assert np.abs(rows.mean(-1)).max() < .01 and np.abs(rows.std(-1) - 1).max() < .01, 'layer-normed'
    assert np.abs(rows[0] - rows[1]).mean() > .01


def test_parameters(model):
    counted = dict.fromkeys(PARTS, 0)
    for name, p in model.named_parameters():
        if p.requires_grad: counted[next(part for part in sorted(PARTS, key=len, reverse=True) if name == part or name.startswith(f'{part}.'))] += p.numel()
    assert counted == PARTS
    assert sum(PARTS.values()) == 201_063_680 and PARTS['encoder.blocks'] == 113_421_312 and PARTS['decoder.blocks'] == 85_054_464, '201 M in the paper'
    assert {n.split('.')[0] for n, p in model.named_parameters() if not p.requires_grad} == {'heads'}


def test_a_step(model, config, features, pairs):
    "Forward and backward of one pair: every part of the loss is finite, every trained parameter gets a gradient that is not zero throughout."
    import torch
    from motionvla.training import clip_gradients, learning_rate, parameter_groups
    from motionvla.vqvae import pair_batch, vqvae_loss
    c = config.vqvae; torch.manual_seed(0); model.train()
    for book in (model.action, model.background): book.norm.eval()  # the mean of one pair is that pair: nothing would be left of it
    loss, parts = vqvae_loss(model, pair_batch(features, pairs, np.array([0])), c)
    assert set(parts) == {'full', 'foreground', 'background', 'codes_action', 'codes_background'} and all(math.isfinite(v) for v in parts.values())
    assert math.isclose(float(loss.detach()), sum(map(float, parts.values())), rel_tol=1e-5), 'weight 1 each'
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = clip_gradients(trained, c.clip)
    assert before > c.clip and abs(float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trained]))) - c.clip) < 1e-3
    decay, spare = parameter_groups(model, c.weight_decay)
    assert decay['weight_decay'] == .01 and spare['weight_decay'] == 0 and sum(p.numel() for g in (decay, spare) for p in g['params']) == sum(PARTS.values())
    assert max(learning_rate(s, c.lr, c.steps, c.warmup) for s in range(0, c.steps, 50)) <= 1e-4 == learning_rate(c.warmup, c.lr, c.steps, c.warmup)
    model.zero_grad(set_to_none=True)


def test_codes(model, features):
    "4 action tokens and 4 background tokens of 16 each; the second frame alone decides nothing that the first does not see (causal in time)."
    import torch
    x = torch.from_numpy(features).float()
    action, background = model.eval().encode(x[:1], x[1:])
    assert action.shape == background.shape == (1, 4) and 0 <= int(action.min()) and int(action.max()) < 16
    block = model.encoder.blocks[0]
    with torch.no_grad():
        two = torch.randn(1, 2, 6, W); other = two.clone(); other[:, 1] += 1
        a, b = block(two), block(other)
    assert torch.allclose(a[:, 0], b[:, 0], atol=1e-5) and not torch.allclose(a[:, 1], b[:, 1], atol=1e-2)


META = '''
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from motionvla.config import load_config
from motionvla.training import _Step, shard_blocks
from motionvla.vqvae import HybridDisentangledVQVAE
torch.distributed.init_process_group('gloo')
c = load_config('paper').vqvae
with torch.device('meta'):
    model = HybridDisentangledVQVAE(768, 16, c.width, c.heads, c.encoder_blocks, c.decoder_blocks, c.tokens, c.codes, c.code_dim, c.beta, c.decay,
                                    c.background_sees_first_frame, c.difference_input, c.motion_input, c.predict, c.quantiser)
whole = shard_blocks(_Step(model, None), init_device_mesh('cpu', (2,)))
blocks = [*model.encoder.blocks, *model.decoder.blocks]
assert all(type(b).__name__.startswith('FSDP') for b in blocks) and len(blocks) == 24
assert sorted(n for n, p in model.named_parameters() if not isinstance(p, DTensor)) == ['action.codebook.embed', 'background.codebook.embed'] and len(whole) == 2
here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
if torch.distributed.get_rank() == 0: print('held here', here, 'of', sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.heads.parameters()), {str(p.device) for p in model.parameters()})
'''


def test_fsdp2_wraps_it_block_by_block(tmp_path):
    "At the paper's size, on the meta device: 24 blocks and the rest, each process holding half."
    (tmp_path/'meta.py').write_text(META)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', tmp_path/'meta.py'], env=environment(), cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:]
    held, _, total, heads = next(line for line in done.stdout.splitlines() if line.startswith('held here')).split()[2:6]
    assert int(total) == sum(PARTS.values()) + int(heads) and abs(int(held)/int(total) - .5) < .001 and "{'meta'}" in done.stdout
