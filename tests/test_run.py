"The whole path at the profile tiny: files, numbers, kills, bad videos, truth that nobody trains on, and the command where a run is there."
import json, os, re, shutil, signal, subprocess, time
from pathlib import Path

import nbformat, psutil, pytest
from conftest import BIN, ROOT, SETTINGS, environment, motionvla, report_of

RATE = {'rate', 'low', 'high', 'n'}
KEYS = {'wall_s': {'world', 'masks', 'vqvae', 'codebook', 'vlm', 'policy', 'eval'},
        'masks': {'provider', 'iou_mean', 'iou_low', 'iou_high', 'n', 'by_provider'},
        'vqvae': {'recon_full', 'recon_foreground', 'recon_background', 'perplexity_action', 'perplexity_background', 'dead_action'},
        'codebook': {'motion_r2', 'camera_r2', 'motion_r2_background', 'camera_r2_background', 'motion_r2_feature_diff', 'motion_r2_body_motion'},
        'vlm': {'token_accuracy', 'token_accuracy_unigram', 'n'},
        'policy': {'trajectories_per_task', 'success'}, 'experts': {'hand', 'franka'}}
FILES = ['world/human/clips.jsonl', 'world/robot/clips.jsonl', 'world/robot/trajectories.parquet', 'world/robot/features.json', 'world/splits.json', 'world/splits.parquet',
         'masks/samples.parquet', 'masks/pairs.parquet', 'masks/coverage.npy', 'vqvae/features.npy', 'vqvae/metrics.jsonl', 'vqvae/model/model.safetensors',
         'codebook/labels.parquet', 'vlm/metrics.jsonl', 'vlm/model/model.safetensors', 'eval/episodes.parquet', 'report.json']
TRAINED = ['vqvae', 'vlm', 'policy/ours', 'policy/from_scratch']


def metrics(run, stage):
    "Rows of a training by step, without what depends on the clock."
    rows = [json.loads(line) for line in (Path(run)/stage/'metrics.jsonl').read_text().splitlines()]
    return {r['step']: {k: v for k, v in r.items() if 'second' not in k and k not in ('time', 'wall_s', 'elapsed_s')} for r in rows}


def same_losses(a, b, stages=TRAINED):
    for stage in stages:
        x, y = metrics(a, stage), metrics(b, stage)
        assert max(x) == max(y) and x[max(x)] == y[max(y)], f'{stage}: {x[max(x)]} and {y[max(y)]}'


def test_report(whole_run):
    report = report_of(whole_run[0])
    for section, keys in KEYS.items():
        assert keys <= set(report[section]), f'{section} lacks {keys - set(report[section])}'
        for k in keys - {'provider', 'by_provider', 'success', 'hand', 'franka'}: assert type(report[section][k]) is float, f'{section}.{k} is {report[section][k]!r}'
    assert 'flow' in (by := report['masks']['by_provider']) and by['flow']['iou_mean'] > .3
    for name, told in by.items(): assert {'iou_mean', 'iou_low', 'iou_high', 'fps_core'} <= set(told) and all(type(v) is float for v in told.values()) and told['iou_low'] <= told['iou_mean'] <= told['iou_high'], name
    assert set(report['policy']['success']) >= {'ours', 'from_scratch'}
    for method in ('ours', 'from_scratch'):
        rate = report['policy']['success'][method]
        assert RATE <= set(rate) and all(type(rate[k]) is float for k in RATE) and 0 <= rate['low'] <= rate['rate'] <= rate['high'] <= 1
    for body in ('hand', 'franka'):  # the rate at which the expert's attempts succeed, by task and over all
        rates = report['experts'][body]
        assert set(rates) == {*report['policy']['by_task']['ours'], 'all'} and all(type(r) is float and 0 < r <= 1 for r in rates.values())
    assert set(report['policy']['by_split']) == {'seen', 'unseen'} and RATE <= set(report['policy']['by_split']['unseen']['ours'])
    assert report['profile'] == 'tiny' and report['seed'] == 0


def test_files(whole_run):
    folder, _ = whole_run
    assert [f for f in FILES if not (folder/f).exists()] == []
    for stage in KEYS['wall_s']: assert (folder/stage/'done.json').exists() and (folder/stage/'config.json').exists()
    assert list((folder/'eval'/'figures').glob('*.png'))
    assert not [p for p in folder.rglob('*') if p.suffix in ('.pt', '.pth', '.pkl', '.bin')]
    assert not [p for p in folder.rglob('*.aside*')] and not list(folder.glob('.*.ipynb'))


def test_config_is_written_resolved(whole_run):
    from dataclasses import asdict
    from motionvla.config import load_config
    from motionvla.cli import collect_overrides
    wanted = asdict(load_config('tiny', collect_overrides(SETTINGS[3::2])))
    for stage in KEYS['wall_s']: assert json.loads((whole_run[0]/stage/'config.json').read_text()) == json.loads(json.dumps(wanted)), stage


def test_executed_notebooks(whole_run):
    folder, _ = whole_run
    for path in sorted(folder.glob('0*.ipynb')):
        notebook = nbformat.read(path, 4)
        injected = [c for c in notebook.cells if 'injected-parameters' in c.metadata.get('tags', [])]
        assert len(injected) == 1 and str(folder) in injected[0].source and not notebook.metadata.papermill['exception']
        assert any('image/png' in o.get('data', {}) for c in notebook.cells if c.cell_type == 'code' for o in c.outputs), path.name


def steps(run, stage):
    "Steps that a training has reported so far."
    try: return max(metrics(run, stage))
    except (OSError, ValueError): return 0


def kill_in(stage, run, after=70):
    "Starts the run, waits until a training has reported `after` of its 240 steps, and kills the command and its notebook with SIGKILL."
    process = subprocess.Popen([BIN/'motionvla', 'run', *SETTINGS, '--run-dir', str(run)], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while steps(run, stage) < after:
        assert process.poll() is None, f'the run ended before {stage} was under way'
        assert time.monotonic() < deadline, f'{stage} was not reached'
        time.sleep(.02)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for p in family:
        try: p.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess: pass
    assert process.wait(30) == -signal.SIGKILL
    psutil.wait_procs(family, 30)
    assert after <= steps(run, stage) < 240, 'the kill came too late to prove anything'
    assert not (Path(run)/stage.split('/')[0]/'done.json').exists()


def test_killed_run_ends_with_the_same_losses(whole_run, tmp_path):
    "SIGKILL in the middle of stages 01, 03 and 04 of one run; each time the same command goes on. (It starts with the other run's masks.)"
    run, whole = tmp_path/'run', whole_run[0]
    run.mkdir(); shutil.copy(whole/'00_masks.ipynb', run)
    for folder in ('world', 'masks'): shutil.copytree(whole/folder, run/folder)
    for stage in ('vqvae', 'vlm', 'policy/ours'): kill_in(stage, run)
    done = motionvla('run', *SETTINGS, '--run-dir', run, '--to-stage', '04_intent_perception')
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'finished before: 00_masks, 01_vqvae, 02_codebook, 03_vlm_pretrain' in done.stdout
    same_losses(whole, run)
    a, b = report_of(whole), report_of(run)
    assert all(a[section] == b[section] for section in ('vqvae', 'codebook', 'vlm'))


def test_from_stage_makes_only_later_stages_again(whole_run, tmp_path):
    run = tmp_path/'run'
    shutil.copytree(whole_run[0], run)
    kept = (run/'vqvae'/'model'/'model.safetensors').stat().st_mtime_ns
    done = motionvla('run', *SETTINGS, '--run-dir', run, '--from-stage', '02', '--to-stage', '02')
    assert done.returncode == 0 and 'removed, to be made again: codebook, vlm, policy, eval' in done.stdout, done.stdout
    assert (run/'vqvae'/'model'/'model.safetensors').stat().st_mtime_ns == kept and not (run/'vlm').exists()
    assert (run/'codebook'/'labels.parquet').read_bytes() == (whole_run[0]/'codebook'/'labels.parquet').read_bytes()
    assert 'vlm' not in report_of(run) and report_of(run)['codebook'] == report_of(whole_run[0])['codebook']


def test_nobody_trains_on_the_truth(whole_run, tmp_path):
    "Without the truth folders every training comes to the same losses."
    run = tmp_path/'run'
    run.mkdir(); shutil.copytree(whole_run[0]/'world', run/'world')
    for truth in run.glob('world/*/truth'): shutil.rmtree(truth)
    program = ('import json, sys\nfrom motionvla.runs import open_run\nfrom motionvla.intent_perception import *\n'
               'ensure_policy(open_run(sys.argv[1], "tiny", 0, json.loads(sys.argv[2])))')
    from motionvla.cli import collect_overrides
    done = subprocess.run([BIN/'python', '-c', program, str(run), json.dumps(collect_overrides(SETTINGS[3::2]))], env=environment(), cwd=ROOT,
                          text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert not list(run.glob('world/*/truth'))
    same_losses(whole_run[0], run)


def test_own_videos(clips, tmp_path):
    "Four good videos, a truncated one and a motionless one: the last two are set aside and listed, and the run goes on to its labels."
    run = tmp_path/'run'
    done = motionvla('run', '--profile', 'tiny', '--videos', clips, '--run-dir', run, '--to-stage', '02_codebook')
    assert done.returncode == 0, done.stdout[-3000:]
    aside = {Path(r['file']).name: r['reason'] for r in map(json.loads, (run/'masks'/'quarantine.jsonl').read_text().splitlines())}
    assert set(aside) == {'truncated.mp4', 'motionless.mp4'}, aside
    assert all('\n' not in reason and len(reason) > 10 for reason in aside.values()) and '2 clips set aside' in done.stdout
    from motionvla.runs import read_parquet
    labels = read_parquet(run/'codebook'/'labels.parquet')
    assert {f'human/good_{i}' for i in range(4)} <= set(labels['clip']) and not {c for c in labels['clip'] if 'truncated' in c or 'motionless' in c}
    assert not (run/'vlm').exists()


def test_real_videos(tmp_path):
    folder = Path(os.environ.get('MOTIONVLA_TEST_DATA', ROOT.parent/'shared'/'data'))
    names = [n for n in ('hand_box.mp4', 'hands_blocks.mp4', 'hands_cups.mp4', 'hand_gesture.mp4') if (folder/n).is_file()]
    if not names: pytest.skip('no real clips here: MOTIONVLA_TEST_DATA names a folder of them')
    videos = tmp_path/'videos'; videos.mkdir()
    for n in names: (videos/n).symlink_to(folder/n)
    done = motionvla('run', '--profile', 'tiny', '--videos', videos, '--run-dir', tmp_path/'run', '--to-stage', '02_codebook',
                     '--set', 'world.robot=false', '--set', 'masks.flow_px=160', '--set', 'masks.workers=2')
    assert done.returncode == 0, done.stdout[-3000:]
    from motionvla.runs import read_parquet
    assert any(c.startswith('human/') for c in read_parquet(tmp_path/'run'/'codebook'/'labels.parquet')['clip'])


def test_a_script_without_the_usual_guard(whole_run, tmp_path):
    "Its worker processes read it again, and would wait for ever for the stage that their parent is making."
    shutil.copytree(whole_run[0]/'world', tmp_path/'run'/'world')
    script = tmp_path/'script.py'
    script.write_text(f"from motionvla.runs import open_run\nfrom motionvla.masks import ensure_masks\nensure_masks(open_run({str(tmp_path/'run')!r}, 'tiny', overrides='masks: {{workers: 2}}'))\n")
    done = subprocess.run([BIN/'python', script], env=environment(), text=True, capture_output=True, timeout=120)
    assert done.returncode == 1 and 'under `if __name__ == "__main__":`' in done.stderr and 'before it had begun' in done.stderr.splitlines()[-1], done.stderr[-2000:]


# ---------------------------------------------------------------- the command and a run that is there
def test_failed_cell(whole_run, tmp_path):
    run = tmp_path/'run'
    shutil.copytree(whole_run[0], run)
    done = motionvla('run', '--profile', 'tiny', '--run-dir', run, '--set', 'vqvae.encoder=nonsense', '--from-stage', '01_vqvae', '--to-stage', '01_vqvae')
    copy = run/'01_vqvae.failed.ipynb'
    assert done.returncode == 1 and 'nonsense' in done.stdout and str(copy) in done.stdout and copy.exists(), done.stdout
    assert 'Traceback' not in done.stdout and not (run/'01_vqvae.ipynb').exists() and not (run/'vqvae'/'done.json').exists()


def test_other_numbers_are_refused(whole_run):
    done = motionvla('run', '--profile', 'tiny', '--run-dir', whole_run[0])
    assert done.returncode == 2 and 'vqvae.steps' in done.stdout and '--from-stage' in done.stdout, done.stdout


def test_report_table(whole_run):
    folder, said = whole_run
    again = motionvla('report', folder).stdout
    report = report_of(folder)
    for text in (said, again):
        assert str(folder/'report.json') in text and 'ours' in text and f'{report["codebook"]["motion_r2"]:.2f}' in text
    assert len(re.findall(r'^0\d_\w+ +\d+\.\d s$', said, re.M)) == 6, said


def test_finished_run_does_nothing(whole_run):
    folder, _ = whole_run
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file() and not p.name.endswith('.lock')}
    done = motionvla('run', *SETTINGS, '--run-dir', folder)
    assert done.returncode == 0 and 'finished before: 00_masks' in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file() and not p.name.endswith('.lock')}


ALONE = """import os, time
from motionvla.training import meanwhile
with meanwhile('signal:pause') as child: print(child.pid, flush=True); time.sleep(120)"""


def test_no_process_outlives_whoever_started_it():
    with subprocess.Popen([BIN/'python', '-c', ALONE], env=environment(), stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(1); assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        os.kill(parent.pid, signal.SIGKILL)
        child.wait(30)


def test_policies_trained_side_by_side(whole_run, tmp_path):
    "With two threads the second policy has a process of its own; both end as they do one after the other, also where that process was killed."
    from motionvla.config import device
    if device().type != 'cpu': pytest.skip('with a GPU they are trained one after the other')
    run = tmp_path/'run'; shutil.copytree(whole_run[0], run)
    for stage in ('policy', 'eval'): shutil.rmtree(run/stage)
    command = [BIN/'motionvla', 'train', 'policy', '--run-dir', run]
    with subprocess.Popen(command, env=environment() | dict(OMP_NUM_THREADS='2'), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while steps(run, 'policy/from_scratch') < 40 and process.poll() is None: time.sleep(.1)
        inner = [c for c in psutil.Process(process.pid).children(recursive=True) if 'train_alone' in ' '.join(c.cmdline())]
        assert len(inner) == 1, 'from_scratch was not trained in a process of its own'
        inner[0].kill(); said = process.stdout.read()
    assert process.returncode == 0 and 'in a process of its own' in said, said[-2000:]
    for stage in TRAINED[2:]:
        x, y = metrics(whole_run[0], stage), metrics(run, stage)
        assert max(x) == max(y) and abs(x[max(x)]['loss'] - y[max(y)]['loss']) < .02*abs(x[max(x)]['loss'])  # sums of floats in another order
