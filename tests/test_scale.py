"One training on one process and on several, shared out, in bf16; cut off and gone on with."
import json, os, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, ROOT, environment, motionvla

SHORT = ['--set', 'vqvae.steps=12', '--set', 'vqvae.save_every=4']
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
#: the VQ-VAE's training, with a row of metrics a step; ends by itself after `stop` steps
PROGRAM = '''
import json, os, sys, torch
import motionvla.vqvae as stage
from motionvla.runs import processes, reopen_run
folder, stop, overrides = sys.argv[1], int(sys.argv[2]), sys.argv[3]
run = reopen_run(folder, 'vqvae', overrides)
real, batch = stage.fit, stage.pair_batch
def fit(model, loss, batches, *rest):
    def until(step):
        if step == stop: os._exit(7)
        return batches(step)
    return real(model, loss, until, *rest, log_every=1)
stage.fit = fit
stage.ensure_vqvae(run)
if processes()[0] == 0: print('group', torch.distributed.is_initialized() and torch.distributed.get_world_size())
'''


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    "A run at the profile tiny as far as the VQ-VAE, made by the command."
    folder = tmp_path_factory.mktemp('trained')/'run'
    done = motionvla('train', 'vqvae', '--profile', 'tiny', '--run-dir', folder)
    assert done.returncode == 0 and 'recon_full' in done.stdout.strip().splitlines()[-1], done.stdout[-3000:]
    return folder


@pytest.fixture(scope='session')
def features(trained, tmp_path_factory):
    "A run with everything that the VQ-VAE's training needs, and nothing of it."
    folder = tmp_path_factory.mktemp('scale')/'features'; (folder/'vqvae').mkdir(parents=True)
    for part in ('world', 'masks'): shutil.copytree(trained/part, folder/part)
    for name in ('features.npy', 'features.json'): shutil.copy(trained/'vqvae'/name, folder/'vqvae')
    return folder


def train(features, folder, processes=1, stop=-1, **settings):
    "Trains in a copy of the run (or goes on in it); metrics by step."
    if not folder.exists(): shutil.copytree(features, folder)
    program = folder.with_suffix('.py'); program.write_text(PROGRAM)
    settings = {k: v for k, v in (dict(steps=12, save_every=4, decode_share=.5) | settings).items()}
    done = subprocess.run([*(TORCHRUN if processes == 2 else [sys.executable]), program, folder, str(stop), json.dumps(dict(vqvae=settings))],
                          env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    if stop < 0: assert done.returncode == 0 and (f'group {processes}' in done.stdout) == (processes > 1), done.stdout[-3000:]
    else: assert done.returncode, done.stdout
    rows = [json.loads(line) for line in (folder/'vqvae'/'metrics.jsonl').read_text().splitlines()]
    return {r['step']: {k: v for k, v in r.items() if k not in ('seconds', 'lr')} for r in rows}


def weights(folder, which='model/model.safetensors'):
    from safetensors.numpy import load_file
    return load_file(folder/'vqvae'/which)


def agree(a, b, rtol):
    assert list(a) == list(b) == list(range(1, 13))
    for step in a:
        assert a[step].keys() == b[step].keys() >= {'loss', 'full', 'foreground', 'background', 'codes_action', 'codes_background', 'motion', 'grad_norm'}
        for k in a[step]: assert np.isclose(a[step][k], b[step][k], rtol=rtol, atol=1e-6), f'step {step}, {k}: {a[step][k]} and {b[step][k]}'


@pytest.fixture(scope='session')
def one(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp('one')/'run'
    return folder, train(features, folder)


@pytest.mark.parametrize('shard', ['ddp', 'fsdp2'])
@pytest.mark.parametrize('quantiser', ['vq', 'vq_loss'])
def test_two_processes_are_one(features, one, tmp_path, shard, quantiser):
    "Every logged loss of every step, whether the entries follow by running means or learn by a loss; the same model in the end, which one process opens."
    alone, base = (one[1], one[0]) if quantiser == 'vq' else (train(features, tmp_path/'one', quantiser=quantiser), tmp_path/'one')
    both = train(features, tmp_path/'two', 2, shard=shard, quantiser=quantiser)
    agree(alone, both, 1e-4)
    a, b = weights(base), weights(tmp_path/'two')
    loose = 'norm.bias', 'qkv.bias', 'to_action.bias', 'to_background.bias', 'norm.mean'  # batch norm or softmax takes them away: their gradient is rounding, which Adam blows up
    assert a.keys() == b.keys() and [k for k in a if not k.endswith(loose) and not np.allclose(a[k], b[k], rtol=1e-3, atol=1e-4)] == []
    assert not list((tmp_path/'two').rglob('*.aside*'))
    told = [json.loads((run/'report.json').read_text())['vqvae'] for run in (base, tmp_path/'two')]
    assert all(np.isclose(told[0][k], told[1][k], rtol=1e-3 if k.startswith('recon') else .03) for k in told[0])  # a pair half-way between two entries may change its code


@pytest.mark.parametrize('settings', [dict(), dict(shard='fsdp2')], ids=['ddp', 'fsdp2'])
def test_two_go_on_where_two_were_cut_off_and_one_too(features, one, tmp_path, settings):
    "The checkpoint is whole: two processes, shared out or not, stop after six steps, and either two or one go on from the fourth."
    run = tmp_path/'run'
    assert max(train(features, run, 2, stop=6, **settings)) == 6
    assert (run/'vqvae'/'checkpoint.safetensors').exists()
    shutil.copytree(run, tmp_path/'alone')
    agree(one[1], train(features, run, 2, **settings), 1e-4)
    agree(one[1], train(features, tmp_path/'alone'), 1e-4)


def test_bf16(features, one, tmp_path):
    "Close to full precision, finite, and exactly the same when cut off and gone on with."
    whole = train(features, tmp_path/'whole', precision='bf16')
    train(features, tmp_path/'cut', stop=6, precision='bf16')
    assert train(features, tmp_path/'cut', precision='bf16') == whole, 'to the last bit'
    a, b = weights(tmp_path/'whole'), weights(tmp_path/'cut')
    assert all((a[k] == b[k]).all() and a[k].dtype == b[k].dtype for k in a) and {v.dtype for v in a.values() if v.dtype.kind == 'f'} == {np.dtype('float32')}
    assert whole != one[1]
    for step, row in whole.items():
        assert all(np.isfinite(v) for v in row.values())
        for k in ('loss', 'full', 'motion'): assert abs(row[k] - one[1][step][k]) < .05*abs(one[1][step][k]), f'step {step}, {k}: {row[k]} and {one[1][step][k]}'


def test_the_group_is_ended_before_python_is(tmp_path):
    "A group that still stands when the interpreter is taken down can abort a process that has nothing left to do (SIGABRT, now and then)."
    program = tmp_path/'meet.py'
    program.write_text("import atexit\nfrom torch.distributed import is_initialized\nfrom motionvla.runs import _agreed, processes\n"
                       "atexit.register(lambda: print('stands' if is_initialized() else 'ended', flush=True))\n"
                       "assert _agreed('said' if processes()[0] == 0 else None) == 'said' and is_initialized()\n")
    done = subprocess.run([*TORCHRUN, program], env=environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200)
    assert done.returncode == 0 and done.stdout.count('ended') == 2 and 'stands' not in done.stdout, done.stdout[-2000:]


def test_the_command(features, tmp_path):
    "`--processes`, and torchrun itself; what is done is not done again, and a batch that cannot be dealt out is refused."
    run = tmp_path/'run'; shutil.copytree(features, run)
    wrong = motionvla('train', 'vqvae', '--run-dir', run, '--processes', 3, *SHORT)
    assert wrong.returncode == 1 and 'cannot be shared equally by 3 processes' in wrong.stdout, wrong.stdout[-2000:]
    shutil.rmtree(run); shutil.copytree(features, run)
    done = motionvla('train', 'vqvae', '--run-dir', run, '--processes', 2, *SHORT)
    assert done.returncode == 0 and 'recon_full' in done.stdout and (run/'vqvae'/'model'/'model.safetensors').exists(), done.stdout[-2000:]
    again = subprocess.run([*TORCHRUN, '--no-python', BIN/'motionvla', 'train', 'vqvae', '--run-dir', run], env=environment(), cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200)
    assert again.returncode == 0 and 'making it' not in again.stdout and again.stdout.count('recon_full') == 1, again.stdout[-2000:]


@pytest.mark.parametrize('words, said', [
    (['masks'], 'nothing is trained in masks'), (['fly'], "no stage 'fly'"), (['vqvae', '--processes', '-1'], '--processes must be'),
    (['vqvae'], 'holds no run yet'), (['vqvae', '--profile', 'tiny', '--set', 'vqvae.shard=3'], 'vqvae.shard must be str'),
], ids=lambda x: ' '.join(x) if isinstance(x, list) else None)
def test_wrong_words(tmp_path, words, said):
    done = motionvla('train', *words, '--run-dir', tmp_path/'run')
    assert done.returncode == 2 and said in done.stdout and len(done.stdout.strip().splitlines()) == 1, done.stdout
    assert not (tmp_path/'run').exists()


def test_later_stages_too(trained, tmp_path):
    "The VLM and the policy on two processes: they start, end, and leave a model behind. (Each process draws its own noise, so the losses are others.)"
    run = tmp_path/'run'; shutil.copytree(trained, run)
    few = [w for key in ('vlm.steps', 'vlm.save_every', 'policy.steps', 'policy.save_every', 'policy.pointer_steps', 'vlm.processes') for w in ('--set', f'{key}={2 if "proc" in key else 6}')]
    done = motionvla('train', 'policy', '--run-dir', run, *few, '--processes', 2)
    assert done.returncode == 0, done.stdout[-3000:]
    for model in ('vlm/model', 'policy/ours/model', 'policy/from_scratch/model'): assert (run/model/'model.safetensors').exists(), model
