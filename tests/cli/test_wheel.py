"""The wheel holds crt_jax alone, and its console scripts train what a person writes beside them."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.end_to_end import runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ('pyproject.toml', 'README.md', 'LICENSE', 'NOTICE', 'crt_jax', 'experiments', 'configs')
MINE = """
from crt_jax import schema

def config():
  model = dict(layers=1, width=16, heads=2, rotary='integer_reversed')
  return schema.experiment(schema.crt_model(depth=2, depth_min=0, **model))
"""
OWN = """
from configs import mine

def get_config():
  config = mine.config()
  config.data.update(sequence_length=16, batch_size=8)
  config.train.steps = 2
  config.eval.update(batches=1, whole=False, during_training_batches=1, sequential=False)
  config.sample.num_tokens = 4
  return config
"""


def call(*words, cwd, **environment):
  """Runs a command in a folder that holds nothing of the clone."""
  kept = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  return subprocess.run(
    words, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=300
  )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel, built from a copy: a build leaves files in the tree that it is built from."""
  source, folder = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
  for name in SOURCES:
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, source / name)
  pip = (sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation')
  done = call(*pip, '--wheel-dir', folder, source, cwd=folder)
  assert done.returncode == 0, done.stderr
  [file] = folder.glob('*.whl')
  return file


@pytest.fixture(scope='module')
def scripts(wheel, tmp_path_factory):
  """The folder of the console scripts, where the wheel is installed and this clone is not."""
  home = tmp_path_factory.mktemp('venv')
  venv.create(home)
  packages = sysconfig.get_path('purelib', vars={'base': home})
  (Path(packages) / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
  python = home / 'bin' / 'python'
  pip = (sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index')
  done = call(*pip, '--force-reinstall', wheel, cwd=home)
  assert done.returncode == 0, done.stderr
  return home / 'bin'


def test_the_wheel_holds_crt_jax_alone(wheel):
  names = {name.partition('/')[0] for name in zipfile.ZipFile(wheel).namelist()}
  assert {name.partition('-')[0] for name in names} == {'crt_jax'}
  assert {name for name in names if not name.endswith('.dist-info')} == {'crt_jax'}


def test_the_wheel_holds_what_is_copied_beside_weights(wheel):
  assert 'crt_jax/convert/assets/modeling_crt_jax.py' in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
  'name', [f'crt-{name}' for name in 'train generate fetch prepare convert export tasks'.split()]
)
def test_a_script_helps_and_refuses(scripts, tmp_path, name):
  done = call(scripts / name, '--help', cwd=tmp_path)
  assert (done.returncode, done.stderr) == (0, '')
  assert f' {name} --' in done.stdout and 'experiments' not in done.stdout
  done = call(scripts / name, '--no_such_flag=1', cwd=tmp_path)
  assert (done.returncode, done.stderr) == (2, 'error: unknown flag --no_such_flag\n')


def test_a_missing_config_is_one_line(scripts, tmp_path):
  done = call(scripts / 'crt-train', '--config=missing.py', cwd=tmp_path)
  assert (done.returncode, done.stderr) == (2, "error: no config file 'missing.py'\n")


def test_it_trains_a_config_beside_a_package_of_the_same_name(scripts, tmp_path):
  """What `configs` means there is the user's package; the wheel has no commit to record."""
  own = tmp_path / 'own'
  (own / 'configs').mkdir(parents=True)
  (own / 'configs' / '__init__.py').touch()
  (own / 'configs' / 'mine.py').write_text(MINE)
  (own / 'own.py').write_text(OWN)
  environment = runs.environment(tmp_path / 'cache')
  command = (scripts / 'crt-train', '--config=own/own.py', '--workdir=run')
  done = call(*command, cwd=tmp_path, **environment)
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert record['origin']['command'] == 'crt-train --config=own/own.py --workdir=run'
  assert record['origin']['commit'] == ''
  done = call(scripts / 'crt-generate', '--workdir=run', '--prompt=a', cwd=tmp_path, **environment)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('a')
