"Wrong words through the command itself, and what a set-up and a wheel must hold."
import shutil, subprocess
from pathlib import Path

import pytest
from conftest import BIN, ROOT, environment, motionvla


@pytest.mark.parametrize('words, said', [
    (['run', '--profile', 'demmo'], "no profile 'demmo'"),
    (['run', '--profile', 'nowhere.yml'], 'nowhere.yml does not exist'),
    (['run', '--videos', 'no/such/folder'], 'no/such/folder does not exist'),
    (['run', '--set', 'vqvae.stepz=3'], "did you mean 'steps'"),
    (['run', '--set', 'vqvae.steps=many'], 'vqvae.steps must be int'),
    (['run', '--set', 'steps'], 'section.key=value'),
    (['run', '--from-stage', '07_fly'], "no stage '07_fly'"),
    (['report', 'no/such/run'], 'no report.json'),
    (['doctor', '--only', 'luck'], "no check 'luck'"),
], ids=lambda x: ' '.join(x) if isinstance(x, list) else None)
def test_wrong_words(tmp_path, words, said):
    done = motionvla(*words, *(['--run-dir', tmp_path/'run'] if words[0] == 'run' else []), cwd=tmp_path, MOTIONVLA_PROFILES=str(ROOT/'profiles'))
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 2 and said in done.stdout and len(lines) == 1, done.stdout
    assert not (tmp_path/'run').exists()


def test_wrong_words_import_nothing_heavy(tmp_path):
    "Torch takes seconds to import; a mistake should not."
    program = ('import sys\nfrom typer.testing import CliRunner\nfrom motionvla.cli import app\n'
               f'r = CliRunner().invoke(app, ["run", "--profile", "demmo", "--run-dir", {str(tmp_path/"r")!r}])\n'
               'assert r.exit_code == 2, r.output\nprint([m for m in ("torch", "transformers", "mujoco", "cv2", "papermill") if m in sys.modules])')
    done = subprocess.run([BIN/'python', '-c', program], env=environment(), text=True, capture_output=True, cwd=ROOT)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


def test_doctor():
    done = motionvla('doctor')
    assert done.returncode == 0 and all(name in done.stdout for name in ('python', 'packages', 'gl', 'decoders', 'gpu', 'disk')), done.stdout


def test_second_set_up_has_nothing_to_do():
    if not (ROOT/'.venv'/'.gl').exists() or Path(BIN).parent.resolve() != (ROOT/'.venv').resolve(): pytest.skip('this environment was not made by make')
    assert subprocess.run(['make', '-q', 'setup'], cwd=ROOT).returncode == 0


def test_a_wheel_carries_profiles_and_notebooks(tmp_path):
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, tmp_path/name)
    for name in ('motionvla', 'profiles', 'nbs'): shutil.copytree(ROOT/name, tmp_path/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run([BIN/'python', 'setup.py', '-q', 'bdist_wheel', '-d', tmp_path/'out'], cwd=tmp_path, check=True, capture_output=True)
    installed = tmp_path/'installed'
    shutil.unpack_archive(next((tmp_path/'out').glob('*.whl')), installed, 'zip')
    program = ('from motionvla.cli import notebooks_dir, NOTEBOOKS; from motionvla.config import load_config, profiles_dir\n'
               'assert all((notebooks_dir()/f"{n}.ipynb").exists() for n in NOTEBOOKS); load_config("paper"); print(notebooks_dir(), profiles_dir())')
    done = subprocess.run([BIN/'python', '-c', program], cwd=installed, env=environment(PYTHONPATH=str(installed)), text=True, capture_output=True)
    assert done.stdout.split() == [str(installed/'motionvla'/'notebooks'), str(installed/'motionvla'/'profiles')], done.stdout + done.stderr
