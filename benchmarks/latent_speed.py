"""Training and labelling speed of the latent-action model against a plain implementation of the release's recipe, what each trick buys, and where a step's time goes:
python benchmarks/latent_speed.py [--sizes demo paper] [--no-compile] [--tiny]. On a GPU: the paper's size there."""
import argparse, itertools, json, resource, tempfile, time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from machine import RESULTS, save  # before NumPy: it sets its threads
import numpy as np
import torch
from torch import nn

from motionvla.config import VQVAEConfig, load_config
from motionvla.latent_speed import TRICKS, ahead, best_time, copy_bandwidth, matmul_peak, plainly, vqvae_flops, work
from motionvla.mask_motion import BODY_MOTION
from motionvla.training import parameter_groups, to_device
from motionvla.vqvae import HybridDisentangledVQVAE, vqvae_loss


def dinov2(px, **sizes):
    "DINOv2 B/14 with registers as the paper has it, weights drawn at random: they do not change the time."
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
    from motionvla.encoders import DINOv2, frozen
    return frozen(DINOv2('random', px, Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=px, patch_size=14, **sizes))))


def encoder_of(size, device):
    from motionvla.encoders import load_encoder
    if size == 'demo': return load_encoder('efficientnet_lite0', 128)
    if size == 'paper': return dinov2(224).to(device)
    return dinov2(56, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)


SIZES = dict(demo=32, paper=2, tiny=4)  # pairs a step on a CPU


def settings_of(size: str) -> VQVAEConfig:
    "The profile's model, all pairs decoded, nothing cropped; pictures that mean nothing must not stop it."
    c = load_config('paper' if size == 'paper' else 'demo').vqvae
    if size == 'tiny': c = replace(c, width=32, heads=2, encoder_blocks=2, decoder_blocks=2, code_dim=16)
    return replace(c, decode_share=1., crop=0, collapse_share=0.)


@dataclass
class Variant:
    "One way of taking a training step."
    name: str
    left_out: tuple = ()       # tricks
    precision: str = 'fp32'    # fp32 | bf16 | fp16
    decode_share: float = 1.
    crop: int = 0
    compiled: bool = False
    cpu: list = field(default_factory=list)   # seconds of each repeat
    wall: list = field(default_factory=list)


class Job:
    "A model of some size with pictures in memory and their features on the disk, on a device."
    def __init__(self, size: str, device: str, folder: Path, batch: int = 0, frames: int = 0):
        self.size, self.device, self.batch, c = size, device, batch or SIZES[size], settings_of(size); self.settings = c
        self.said = f'{size}: width {c.width}, {c.encoder_blocks} + {c.decoder_blocks}, batch {self.batch}' + (f', {torch.cuda.get_device_name()}' if device == 'cuda' else '')
        self.net = encoder_of(size, device); rng = np.random.default_rng(0); n, px = frames or 4*self.batch, self.net.image_px
        coarse = torch.from_numpy(rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)).float()
        self.frames = nn.functional.interpolate(coarse, (px, px), mode='bilinear').byte().permute(0, 2, 3, 1).contiguous()
        np.save(folder/f'{size}.npy', torch.cat([self.net(f.to(device)).cpu().half() for f in self.frames.split(32)]).numpy())
        self.features = np.load(folder/f'{size}.npy', mmap_mode='r')
        self.other = {k: torch.from_numpy(rng.random((n, *shape), dtype=np.float32)) for k, shape in dict(coverage=(self.net.grid**2,), geometry=(2, 5), body=(len(BODY_MOTION),)).items()}
        torch.manual_seed(0)
        own = {k: getattr(c, k) for k in ('width', 'heads', 'encoder_blocks', 'decoder_blocks', 'code_dim', 'difference_input', 'motion_input', 'predict', 'quantiser')}
        self.model = HybridDisentangledVQVAE(self.net.dim, self.net.grid, **own).to(device).train()
        nn.init.normal_(self.model.decoder.change.weight, std=.02)  # as if trained: the first step would have zeros to multiply
        groups = parameter_groups(self.model, .01)
        self.optimizers = dict(fused=torch.optim.AdamW(groups, lr=1e-5, fused=True), plain=torch.optim.AdamW(groups, lr=1e-5, foreach=False, fused=False))
        self.scaler = torch.amp.GradScaler(device, enabled=device == 'cuda')

    def rows(self, step): return (np.arange(step*self.batch, (step + 1)*self.batch)*7 % len(self.frames), (np.arange(step*self.batch, (step + 1)*self.batch)*11 + 3) % len(self.frames))

    def cached(self, step):
        "The batch from the features on the disk, half precision as they lie there."
        source, target = self.rows(step)
        return dict(source=torch.from_numpy(self.features[source]), target=torch.from_numpy(self.features[target]), **{k: v[source] for k, v in self.other.items()})

    def encoded(self, step):
        "The batch from the pictures, both frames through the encoder at once (its best case)."
        source, target = self.rows(step)
        x = self.net(self.frames[np.r_[source, target]].to(self.device))
        return dict(source=x[:self.batch], target=x[self.batch:], **{k: v[source].to(self.device) for k, v in self.other.items()})

    def autocast(self, precision):
        return nullcontext() if precision == 'fp32' else torch.autocast(self.device, dict(bf16=torch.bfloat16, fp16=torch.float16)[precision])

    def flops(self, share=1., crop=0):
        "Of one training step, as little as the model needs."
        return self.batch*sum(vqvae_flops(replace(self.settings, decode_share=share), (self.net.grid - crop)**2, self.net.dim).values())


def step(job: Job, v: Variant, number: int, batches=None):
    "One training step, from the batch's rows to the new weights; `batches`: an iterator that has them ready."
    optimizer, scaler = job.optimizers['plain' if 'adamw' in v.left_out else 'fused'], job.scaler if v.precision == 'fp16' else torch.amp.GradScaler(job.device, enabled=False)
    for part in (job.model.encoder, job.model.decoder): part._compiled_call_impl = part.compiled if v.compiled else None
    with plainly(job.model, *v.left_out):
        with job.autocast(v.precision):
            batch = job.encoded(number) if 'cached' in v.left_out else next(batches) if batches else to_device(job.cached(number), job.device)
            loss, _ = vqvae_loss(job.model, batch, replace(job.settings, decode_share=v.decode_share, crop=v.crop))
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(job.model.parameters(), 1., foreach=None if 'adamw' not in v.left_out else False)
    scaler.step(optimizer); scaler.update(); optimizer.zero_grad(set_to_none=True)


def spent():
    "Processor seconds of this process and of those it started, and wall seconds."
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([sum(u.ru_utime + u.ru_stime for u in use), time.perf_counter()])


def take_turns(job: Job, variants: list, repeats: int):
    "Steps of all variants, A B C A B C …; the first round warms up and does not count."
    loaders = {v.name: ahead(job.cached, range(repeats + 1), job.device) for v in variants if job.device == 'cuda' and 'cached' not in v.left_out}
    for number in range(repeats + 1):
        for v in variants:
            torch.manual_seed(number); start = spent()
            step(job, v, number, loaders.get(v.name))
            if job.device == 'cuda': torch.cuda.synchronize()
            cpu, wall = spent() - start
            if number: v.cpu.append(cpu); v.wall.append(wall)
            elif wall > 5: print(f'{job.said}: {v.name}, first step {wall:.0f} s', flush=True)


def train_rows(job: Job, variants: list, peaks: dict) -> list:
    "Rows of the variants' speed: processor seconds on a CPU, wall seconds on a GPU."
    seconds = {v.name: v.wall if job.device == 'cuda' else v.cpu for v in variants}; best = {k: min(s) for k, s in seconds.items()}
    kept = []
    for v in variants:
        flops, top = job.flops(v.decode_share, v.crop), peaks['sgemm, large' if v.precision == 'fp32' else 'bf16 product, large']
        kept.append(dict(kind='train', size=job.said, what=v.name, best_s=best[v.name], median_s=float(np.median(seconds[v.name])), best_wall_s=min(v.wall), n=len(v.wall),
                         pairs_per_s=job.batch/best[v.name], gflop=flops/1e9, gflops_per_s=flops/best[v.name]/1e9, share_of_peak=flops/best[v.name]/top, times_plain=best['plain']/best[v.name], times_ours=best['ours']/best[v.name]))
    return kept


@torch.no_grad()
def checks(job: Job) -> list:
    "Plain and ours, same weights, same pairs: the difference of their losses over the loss. Speed is compared of equals only."
    state, losses = {k: v.clone() for k, v in job.model.state_dict().items()}, {}
    pictures = job.encoded(0); rounded = pictures | {k: pictures[k].half() for k in ('source', 'target')}
    for name, batch, left_out in (('ours', rounded, ()), ('plain', rounded, TRICKS), ('pictures', pictures, TRICKS), ('cached', to_device(job.cached(0), job.device), ())):
        job.model.load_state_dict(state); torch.manual_seed(0)
        with plainly(job.model, *left_out): losses[name] = vqvae_loss(job.model, batch, job.settings)[0].item()
    job.model.load_state_dict(state)
    apart = lambda a, b: abs(losses[a] - losses[b])/losses[a]
    kept = [dict(kind='check', size=job.said, what='plain and ours, the same features', value=apart('ours', 'plain'), allowed=1e-4),
            dict(kind='check', size=job.said, what='encoded now and read back in half precision', value=apart('pictures', 'cached'), allowed=1e-2)]
    for r in kept:
        if r['value'] > r['allowed']: raise SystemExit(f'{r["size"]}: {r["what"]}: the losses are apart by {r["value"]:.1e}: a speed of two different things means nothing')
    return kept


def compile_row(job: Job, precision: str, repeats: int) -> dict:
    "What torch.compile of encoder and decoder costs and saves (processor seconds, those of the C++ compiler included)."
    before, after = Variant('before', precision=precision), Variant('after', precision=precision, compiled=True)
    start = spent(); step(job, after, 0); cost = spent() - start
    take_turns(job, [before, after], repeats)
    saved = min(before.cpu) - min(after.cpu)
    return dict(kind='compile', size=job.said, what=precision, compile_s=cost[0], compile_wall_s=cost[1],
                before_s=min(before.cpu), best_s=min(after.cpu), pays_after=int(cost[0]/saved) if saved > 0 else None)


def part_rows(job: Job, whole: float) -> list:
    "Each part of a training step alone, at the shapes of the step, forward and backward (fp32; bf16 on a GPU): seconds, FLOPs, bytes of all operands."
    m, b, c, device = job.model, job.batch, job.settings, job.device
    n, w, d, k = job.net.grid**2, c.width, job.net.dim, 2*m.tokens
    t, E, D = n + k, c.encoder_blocks, c.decoder_blocks
    flops = {key: b*v for key, v in vqvae_flops(c, n, d).items()}
    x = lambda *shape: torch.randn(*shape, device=device, requires_grad=True)
    block, answer, batch = m.encoder.blocks[0], m.decoder, to_device(job.cached(0), device)
    frame, two, few, three = x(2*b, t, w), x(b, 2, t, w), x(b, 2, k, w), x(3*b, t, w)
    source, target = m.standard(batch['source']), m.standard(batch['target'])
    z, codes, guess, weight = x(b, k, w), x(b, m.tokens, c.code_dim), x(3, b, n, d), batch['coverage']
    def books():
        (q, _, one), (g, _, other) = m.action(m.to_action(z[:, :m.tokens])), m.background(m.to_background(z[:, m.tokens:]))
        return one + other + q.sum() + g.sum() + (m.heads.predicted(q, batch['geometry']).sum() if c.motion_head or c.flow_head else 0)
    def loss():
        error = (guess - target).square().mean(-1)
        return error[0].mean() + (error[1]*weight).sum()/weight.sum() + (error[2]*(1 - weight)).sum()/(1 - weight).sum()
    def ends():
        first, a = answer.patch(source), answer.action(codes) + answer.background(codes)
        y = answer.norm(three[:, k:]); return first.sum() + a.sum() + (answer.change(y) + (answer.gate(y).sigmoid()*source.repeat(3, 1, 1) if answer.gate else 0)).sum()
    def spatial(asked=slice(None)): return block.space(frame, asked).sum()
    def optimise():
        for p in m.parameters(): p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.); job.optimizers['fused'].step()
    pieces = {'patch embedding': [(1, lambda: m.encoder.patch(torch.stack([source, target], 1)).sum() + (m.encoder.difference(target - source).sum() if m.encoder.difference else 0))],
              'spatial attention': [(E - 1, spatial), (1, lambda: spatial(slice(k)))], 'temporal attention': [(E - 1, lambda: block.time(two).sum()), (1, lambda: block.time(few).sum())],
              'encoder mlp': [(E - 1, lambda: block.mlp(two).sum()), (1, lambda: block.mlp(few).sum())], 'decoder attention': [(D, lambda: answer.blocks[0].space(three).sum())],
              'decoder mlp': [(D, lambda: answer.blocks[0].mlp(three).sum())], 'decoder ends': [(1, ends)], 'codebooks': [(1, books)], 'losses': [(1, loss)]}
    def both(f):
        with job.autocast('bf16' if device == 'cuda' else 'fp32'): value = f()
        value.backward()
    run = {name: [(times, lambda f=f: both(f)) for times, f in calls] for name, calls in pieces.items()}
    run |= {'optimiser': [(1, optimise)], 'batch loading': [(1, lambda: [m.standard(v) for k, v in to_device(job.cached(1), device).items() if k in ('source', 'target')])]}
    kept = []
    for name, calls in run.items():
        seconds, moved = sum(times*best_time(f, device, 4) for times, f in calls), sum(times*work(f)[1] for times, f in calls)
        kept.append(dict(kind='part', size=job.said, what=name, seconds=seconds, share=seconds/whole, flops=flops.get(name, 0), bytes=moved))
    m.zero_grad(set_to_none=True)
    return kept


def film(path: Path, px: int, seconds: int, fps: int = 30) -> Path:
    "The drawn film, to and fro."
    from motionvla.mask_measure import drawn_film
    from motionvla.video import write_video
    frames = drawn_film(22, px)[0]
    write_video(path, frames[np.r_[0:22, 20:0:-1][np.arange(seconds*fps)//3 % 42]], fps)
    return path


def label_rows(job: Job, folder: Path, repeats: int, film_s: int, hz: float = 5.) -> list:
    "Pairs a second from cached features, plain and ours in turn; from film files: decoding, masks and the body's motion (for a model that is told), encoder, model."
    from motionvla.codebook import label_pairs
    from motionvla.config import MasksConfig
    from motionvla.datasets import video_clip
    from motionvla.labels import follow_body
    from motionvla.mask_bulk import masked_windows
    from motionvla.mask_providers import make_provider
    from motionvla.video import read_frames
    model, kept = job.model.eval(), []
    source, target = (np.tile(r, 8)[:max(64, 4*job.batch)] for r in job.rows(0))
    ways = {'cached features, plain': TRICKS, 'cached features, ours': ()}; seconds = {k: [] for k in ways}
    told = np.zeros((len(source), len(BODY_MOTION)), np.float32) if model.motion_input else None
    def timed(f):
        start = spent(); f()
        if job.device == 'cuda': torch.cuda.synchronize()
        return (spent() - start)[int(job.device == 'cuda')]
    for number in range(repeats + 1):
        for name, left_out in ways.items():
            with plainly(model, *left_out): seconds[name].append(timed(lambda: label_pairs(model, job.features, source, target, 256, progress=False, body=told)))
    for name in ways: best = min(seconds[name][1:]); kept.append(dict(kind='label', size=job.said, what=name, pairs_per_s=len(source)/best, hours_per_hour=len(source)/hz/best, best_s=best))
    times = np.arange(0, film_s - 1/hz, 1/hz); gap = int(hz); pairs = np.arange(len(times) - gap)
    for px in (224, 480):
        path, got, b, config = film(folder/f'{px}.mp4', px, film_s), {}, [np.inf]*4, MasksConfig()
        def decode():  # for a model that is told, the flow's pictures and the encoder's come from one reading
            if not model.motion_input: got['frames'] = torch.from_numpy(read_frames(path, times, size=job.net.image_px))
        def encode(): got['features'] = job.net(got['frames'].to(job.device)).half().cpu().numpy()
        def mask():
            if not model.motion_input: got['way'] = None; return
            clip, other = (video_clip('film', {'': path}) for _ in range(2)); masked = masked_windows(other, make_provider(config, {}, other), config)  # two readings, as `clip_labels` has them
            pictures, way, _ = zip(*follow_body(clip, masked, job.net.image_px))
            got['frames'], got['way'] = torch.from_numpy(np.concatenate(pictures)), np.concatenate(way)
        def label():
            body = None if got['way'] is None else (got['way'][pairs + gap] - got['way'][pairs]).astype(np.float32)
            label_pairs(model, got['features'], pairs, pairs + gap, 256, progress=False, body=body)
        for _ in range(repeats): b = [min(s, timed(f)) for s, f in zip(b, (decode, mask, encode, label))]
        kept.append(dict(kind='label', size=job.said, what=f'film of {px} × {px}, 30 fps', pairs_per_s=len(pairs)/sum(b),
                         hours_per_hour=film_s/sum(b), best_s=sum(b), decode_s=b[0], mask_s=b[1], encode_s=b[2], label_s=b[3]))
    job.model.train()
    return kept


def variants(device: str, ladder: bool) -> list:
    "What is compared. On a GPU the plain recipe runs in fp16 autocast, ours in bf16 and compiled."
    gpu = device == 'cuda'; plain, own = ('fp16', 'bf16') if gpu else ('fp32', 'fp32')
    kept = [Variant('plain', TRICKS, plain), Variant('ours', (), own, compiled=gpu)]
    kept += [Variant('ours, not compiled', (), own)] if gpu else [Variant('ours, bf16', (), 'bf16')]
    kept += [Variant('ours, decode_share 0.25', (), own, .25, compiled=gpu)]
    if not gpu: kept += [Variant('ours, bf16, decode_share 0.25', (), 'bf16', .25), Variant('ours, decode_share 0.25, crop 1', (), 'fp32', .25, 1),
                          Variant('ours, bf16, decode_share 0.25, crop 1', (), 'bf16', .25, 1)]
    if ladder:
        kept += [Variant(f'ours without {t}', (t,), own) for t in TRICKS]
        kept += [Variant(f'plain with {t}', tuple(x for x in TRICKS if x != t), plain) for t in TRICKS]
    return kept


def compilable(job, tiny):
    "Keeps a compiled call beside the plain one of encoder and decoder, to switch between them; `tiny` traces them but does not generate code."
    for part in (job.model.encoder, job.model.decoder):
        part.compile(**(dict(backend='aot_eager') if tiny else dict(dynamic=False))); part.compiled, part._compiled_call_impl = part._compiled_call_impl, None


def largest_batch(device, folder, start=128):
    "A job of the paper's size whose plain step fits the card: the batch is halved until it does."
    while start:
        job = Job('paper', device, folder, start, frames=512); compilable(job, False)
        try:
            for name in ('plain', 'ours, not compiled'): step(job, next(v for v in variants(device, False) if v.name == name), 0)
            return job
        except torch.cuda.OutOfMemoryError: pass  # what failed holds memory until this block ends
        job, start = None, start//2; torch.cuda.empty_cache()
    raise SystemExit('the paper\'s size does not fit this card, not even one pair')


def measure(size, device, folder, asked, peaks) -> list:
    "All rows of one size."
    tiny, paper = size == 'tiny', size == 'paper'
    if device == 'cuda' and paper: job = largest_batch(device, folder)
    else: job = Job(size, device, folder); compilable(job, tiny)
    repeats = 2 if tiny else 10 if device == 'cuda' else 1 if paper else asked.repeats
    kept, ways = checks(job), variants(device, device == 'cuda' or not paper)
    if paper and device == 'cpu': ways = [v for v in ways if v.decode_share == 1]  # a step takes half a minute
    if tiny: ways += [Variant('ours, compiled', compiled=True), Variant('ours, bf16, compiled', precision='bf16', compiled=True)]
    take_turns(job, ways, repeats); kept += train_rows(job, ways, peaks)
    if tiny:
        for _ in ahead(job.cached, range(3), device): pass
    if device == 'cuda' or not paper:
        kept += part_rows(job, next(r['best_s'] for r in kept if r.get('what') == 'ours')) + label_rows(job, folder, 2 if tiny else 3, 4 if tiny else 60)
    if size == 'demo' and asked.compile: kept += [compile_row(job, 'bf16', 5)]
    return kept


if __name__ == '__main__':
    parser = argparse.ArgumentParser(); parser.add_argument('--sizes', nargs='+', default=[], choices=list(SIZES)); parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--no-compile', dest='compile', action='store_false', help='do not measure torch.compile on the CPU (two minutes)')
    parser.add_argument('--tiny', action='store_true', help='all paths at a tiny size, on the CPU; nothing is saved')
    asked = parser.parse_args(); device = 'cuda' if torch.cuda.is_available() and not asked.tiny else 'cpu'
    torch.set_num_threads(1)
    large = 256 if asked.tiny else 8192 if device == 'cuda' else 2048
    peaks = {'sgemm, large': matmul_peak(large, large, large, device=device), 'bf16 product, large': matmul_peak(large, large, large, torch.bfloat16, device),
             'copy': copy_bandwidth(16 if asked.tiny else 256, device)}
    for m, k, n in ((4608, 96, 288), (4608, 96, 384), (4608, 384, 96)):
        peaks |= {f'{name}, {m} × {k} × {n}': matmul_peak(m, k, n, kind, device) for name, kind in (('sgemm', torch.float32), ('bf16 product', torch.bfloat16))}
    rows = [dict(kind='peak', size=torch.cuda.get_device_name() if device == 'cuda' else 'cpu', what=k, value=v) for k, v in peaks.items()]
    sizes = ['tiny'] if asked.tiny else asked.sizes or (['paper'] if device == 'cuda' else ['demo', 'paper'])
    with tempfile.TemporaryDirectory() as d: rows += itertools.chain.from_iterable([measure(size, device, Path(d), asked, peaks) for size in sizes])
    before = json.loads((RESULTS/'latent_speed.json').read_text())['rows'] if (RESULTS/'latent_speed.json').exists() else []
    rows += [r for r in before if r['size'] not in {x['size'] for x in rows}]  # sizes that were not asked for stay as they were
    keys = dict.fromkeys(k for r in rows for k in r)
    if asked.tiny:
        for r in rows: print({k: f'{v:.3g}' if isinstance(v, float) else v for k, v in r.items() if v is not None})
    else: save('latent_speed', [{k: r.get(k) for k in keys} for r in rows])
