"""The command line as a person meets it: exit codes, one line on stderr, help (in subprocesses)."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = '--config=configs/quickstart.py'

ENTRY = '''"""Trains something tiny.

  python -m entry --config=configs/quickstart.py
"""
import json, os, sys
from absl import flags, logging
from crt_jax import cli

_CONFIG = cli.define_config(required='eval' not in sys.argv[-1])
_WORKDIR = cli.define_workdir()
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'What to do.')
_DO = flags.DEFINE_string('do', '', 'Python to run.')

def main(argv):
  assert argv == sys.argv[:1]
  logging.info('hidden from people')
  config = _CONFIG.value.to_dict() if _CONFIG.value else None
  print(json.dumps(dict(config=config, workdir=_WORKDIR.value, jax='jax' in sys.modules)))
  if _DO.value == 'interrupt':
    raise KeyboardInterrupt
  exec(_DO.value)
  return cli.PREEMPTED if _MODE.value == 'eval' else None

if __name__ == '__main__':
  cli.run(main)
'''

QUICKSTART = '''"""A tiny run.

More about it.
"""
from ml_collections import ConfigDict
from crt_jax import cli

def get_config(arguments=''):
  given = cli.parse_arguments(arguments, R=8)
  config = ConfigDict(dict(seed=1, R=given.R))
  config.model = ConfigDict(dict(width=64, name='crt'))
  config.model.ff = 4 * config.model.get_ref('width')
  config.train = ConfigDict(dict(steps=2000, learning_rate=1e-3))
  config.eval = ConfigDict(dict(depths=(1, 2), betas=(0.9, 0.99), none=(), whole=True, seed=3))
  return config
'''


@pytest.fixture(scope='module')
def here(tmp_path_factory):
  """A directory with an entry point and its configs, away from the repository."""
  path = tmp_path_factory.mktemp('cli')
  (path / 'configs').mkdir()
  (path / 'entry.py').write_text(ENTRY)
  (path / 'configs' / 'quickstart.py').write_text(QUICKSTART)
  (path / 'configs' / 'broken.py').write_text('def get_config():\n  return undefined\n')
  return path


def start(here, *words, **environment):
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(here), str(ROOT)]), **environment}
  return subprocess.run(
    [sys.executable, '-m', *words], cwd=here, env=env, capture_output=True, text=True, timeout=60
  )


def done(here, *words):
  """Runs the entry point and returns what it printed as JSON."""
  result = start(here, 'entry', *words)
  assert (result.returncode, result.stderr) == (0, '')
  return ast.literal_eval(result.stdout.replace('true', 'True').replace('false', 'False'))


def refused(here, *words, **environment):
  """Runs the entry point and returns its one line on stderr."""
  result = start(here, 'entry', *words, **environment)
  assert result.returncode == 2, result
  assert result.stderr.count('\n') == 1 and result.stderr.startswith('error: '), result.stderr
  return result.stderr


def test_overrides_take_the_types_of_the_config(here):
  printed = done(
    here,
    '--config.train.steps=50',  # before --config: the order does not matter
    '--config',
    'configs/quickstart.py:R=2',
    '--config.train.learning_rate=1',
    '--config.model.width=128',
    '--config.eval.depths=(1,3)',
    '--config.eval.betas=1,0.5',
    '--config.eval.none=7',
    '--noconfig.eval.whole',
    '--config.model.name',
    '5',
  )
  config = printed['config']
  assert config['R'] == 2
  assert config['train'] == dict(steps=50, learning_rate=1.0)
  assert isinstance(config['train']['learning_rate'], float)
  assert config['model'] == dict(width=128, ff=512, name='5')
  assert config['eval'] == dict(depths=[1, 3], betas=[1.0, 0.5], none=[7], whole=False, seed=3)
  assert isinstance(config['eval']['betas'][0], float)
  assert printed['workdir'] == 'runs/quickstart-R=2'
  assert printed['jax'] is False


def test_an_empty_tuple_takes_texts(here):
  """A word alone is refused, as below."""
  for given in (['a'], ['a', 'b']):
    assert (
      done(here, CONFIG, f'--config.eval.none={tuple(given)}')['config']['eval']['none'] == given
    )


def test_workdir_as_given(here):
  assert done(here, CONFIG, '--workdir=elsewhere')['workdir'] == 'elsewhere'
  assert done(here, CONFIG)['workdir'] == 'runs/quickstart'
  assert done(here, CONFIG, '--workdir=~/run')['workdir'] == os.path.expanduser('~/run')


@pytest.mark.parametrize(
  'words, line',
  [
    # The config file.
    ([], '--config is missing, as in --config=configs/quickstart.py'),
    (['--config=configs/quikstart.py'], 'did you mean configs/quickstart.py?'),
    (['--config='], "no config file ''"),
    (['--config=configs/broken.py'], 'configs/broken.py:2: NameError'),
    ([CONFIG + ':Q=8'], "unknown config argument 'Q' (known: R)"),
    ([CONFIG + ':R=x'], "'R=x': expected a whole number"),
    ([CONFIG, CONFIG], '--config is given 2 times'),
    # Names of fields and flags.
    ([CONFIG, '--config.train.stps=50'], 'did you mean --config.train.steps?'),
    ([CONFIG, '--config.train.zzz=50'], 'train has train.learning_rate, train.steps'),
    ([CONFIG, '--config.train=50'], '--config.train is a section'),
    (['--config.train.steps=50'], '--config.train.steps is given without --config=FILE'),
    ([CONFIG, '--wrkdir=x'], 'unknown flag --wrkdir; did you mean --workdir?'),
    ([CONFIG, '--steps=5'], 'unknown flag --steps; did you mean --config.train.steps?'),
    (['configs/quickstart.py'], 'flags are written --config=configs/quickstart.py'),
    ([CONFIG, 'extra'], "unexpected argument 'extra'"),
    # Values.
    (
      [CONFIG, '--config.train.steps=abc'],
      '--config.train.steps=abc: expected a whole number (int), as in --config.train.steps=2000',
    ),
    ([CONFIG, '--config.train.steps=1.5'], 'expected a whole number'),
    ([CONFIG, '--config.train.steps='], 'expected a whole number'),
    ([CONFIG, '--config.train.learning_rate=fast'], 'expected a number (float)'),
    ([CONFIG, '--config.eval.whole=maybe'], 'expected true or false (bool)'),
    (
      [CONFIG, '--config.eval.depths=(1,a)'],
      "expected a tuple of int, as in --config.eval.depths='(1",
    ),
    ([CONFIG, '--config.eval.depths=(1,2.5)'], 'expected a tuple of int'),
    ([CONFIG, '--config.eval.depths=many'], 'expected a tuple of int'),
    ([CONFIG, '--config.eval.none=many'], 'expected a tuple'),
    (
      [CONFIG, '--config.train.steps'],
      '--config.train.steps has no value, as in --config.train.steps=2000',
    ),
    ([CONFIG, '--workdir'], '--workdir has no value, as in --workdir=VALUE'),
    ([CONFIG, '--mode=trian'], '--mode=trian: value should be one of <train|eval>'),
    ([CONFIG, '--flagfile=nowhere'], 'nowhere'),
    (['--mode=eval'], '--workdir is missing'),
    ([CONFIG, '--workdir=gs://bucket/run'], "--workdir='gs://bucket/run': only file systems"),
    (
      [CONFIG, '--workdir=s3://bucket/run'],
      'mount the bucket (rclone mount --vfs-cache-mode full)',
    ),
    # Inside main.
    ([CONFIG, '--do=raise ValueError("width=9: use 8")'], 'error: width=9: use 8\n'),
    ([CONFIG, '--do=open("/nowhere/at/all")'], '/nowhere/at/all: No such file or directory'),
    ([CONFIG, '--do=raise cli.Mistake("no")'], 'error: no\n'),
    (
      [CONFIG, '--config.train.steps=5', '--do=cli.refuse_overrides("it is done")'],
      '--config.train.steps has no effect: it is done; leave it out',
    ),
    (
      [CONFIG, '--workdir=x', '--do=cli.refuse_overrides("it is done", "mode", "workdir")'],
      '--workdir has no effect: it is done; leave it out',
    ),
  ],
)
def test_a_mistake_is_one_line(here, words, line):
  assert line in refused(here, *words)


def test_an_internal_error_keeps_its_traceback(here):
  for code in ('int("x")', 'raise RuntimeError("x")', 'assert False'):
    result = start(here, 'entry', CONFIG, f'--do={code}')
    assert result.returncode == 1
    assert 'Traceback' in result.stderr and 'entry.py' in result.stderr


@pytest.mark.parametrize(
  'words, environment', [(['--traceback'], {}), ([], {'CRT_JAX_TRACEBACK': '1'})]
)
def test_a_mistake_with_its_traceback(here, words, environment):
  code = '--do=raise ValueError("width=9")'
  result = start(here, 'entry', CONFIG, code, *words, **environment)
  assert result.returncode == 2
  assert 'Traceback' in result.stderr and result.stderr.endswith('error: width=9\n')


def test_exit_codes_of_main_pass_through(here):
  result = start(here, 'entry', '--workdir=x', '--mode=eval')
  assert (result.returncode, result.stderr) == (75, '')
  result = start(here, 'entry', CONFIG, '--do=interrupt')
  assert (result.returncode, result.stderr) == (130, 'interrupted\n')


NOISE = """from absl import logging
logging.warning('a default of ours was chosen')
logging.error('a write failed')
"""


def test_warnings_of_orbax_are_hidden_and_ours_are_not(here):
  (here / 'libraries' / 'orbax').mkdir(parents=True)
  (here / 'libraries' / 'orbax' / 'noise.py').write_text(NOISE)
  code = '--do=sys.path.insert(0, "libraries"); import orbax.noise; logging.warning("of ours")'
  told = start(here, 'entry', CONFIG, code).stderr
  assert 'a write failed' in told and 'of ours' in told and 'a default' not in told
  assert 'a default' in start(here, 'entry', CONFIG, code, '--verbosity=-1').stderr


def test_a_mistake_is_answered_before_anything_heavy_is_imported(here):
  heavy = here / 'heavy'
  heavy.mkdir()
  for name in ('jax', 'flax', 'optax', 'orbax', 'grain'):
    (heavy / f'{name}.py').write_text('raise SystemExit(97)')
  first = dict(PYTHONPATH=os.pathsep.join(map(str, (heavy, here, ROOT))))
  refused(here, CONFIG, '--config.train.stps=50', **first)
  assert start(here, 'entry', CONFIG, '--do=import jax', **first).returncode == 97


def test_signals_are_heard_before_anything_heavy_is_imported(here):
  """Their own import takes some ten milliseconds; absl's and JAX's take a second and more."""
  code = 'import sys; import crt_jax.cli.train; print({"absl", "numpy", "jax"} & set(sys.modules))'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == 'set()\n', done.stderr


def test_a_path_may_begin_with_the_home_directory_wherever_one_is_taken(here):
  """No shell replaces the ~ of --config=~/x.py."""
  home = {'HOME': str(here)}
  result = start(here, 'entry', '--config=~/configs/quickstart.py', '--workdir=~/runs/a', **home)
  assert json.loads(result.stdout)['workdir'] == f'{here}/runs/a', result.stderr
  result = start(here, 'entry', CONFIG, '--do=~/x', **home)  # is no Python; the error shows it
  assert f'{here}/x' in result.stderr
  result = start(here, 'entry', CONFIG, "--do=print('~/x')", **home)
  assert result.stdout.endswith('~/x\n')


def test_help_teaches(here):
  result = start(here, 'entry', '--help')
  assert (result.returncode, result.stderr) == (0, '')
  for words in (
    'Trains something tiny.',
    'python -m entry --config=configs/quickstart.py',
    '--workdir=DIR',
    '--mode=train|eval',
    '(default: train)',
    '--config.train.steps=50',
    'A tiny run.',
    '75 stopped and saved',
  ):
    assert words in result.stdout
  assert 'logtostderr' not in result.stdout
  assert result.stdout.count('\n') < 60


def test_help_of_training_is_one_screen(here):
  for config in ([], ['--config=configs/quickstart.py']):
    result = start(ROOT, 'experiments.main', *config, '--help')
    assert result.returncode == 0 and result.stdout.count('\n') <= 62
    assert 'configs/quickstart.py' in result.stdout and '--helpfull' in result.stdout
  full = start(ROOT, 'experiments.main', '--helpfull').stdout
  assert '--join_timeout=' in full and 'configs/cart_d1024.py' in full


def test_helpfull_with_a_config_shows_its_fields(here):
  result = start(here, 'entry', CONFIG, '--config.train.steps=7', '--helpfull')
  assert result.returncode == 0
  steps = r'^  --config.train.steps=7 +int +updates of the parameters$'
  of_no_schema = r'^  --config.model.ff=256 +int$'
  for line in (steps, of_no_schema):
    assert re.search(line, result.stdout, re.MULTILINE)


def test_helpfull_lists_the_libraries_flags(here):
  result = start(here, 'entry', '--helpfull')
  assert result.returncode == 0
  assert 'logtostderr' in result.stdout


ENTRY_POINTS = [
  file.stem
  for file in sorted((ROOT / 'experiments').glob('*.py'))
  if "\nif __name__ == '__main__':" in file.read_text('utf-8')
]


@pytest.mark.parametrize('module', ENTRY_POINTS)
def test_every_entry_point_helps_and_refuses(here, module):
  environment = {'PYTHONPATH': os.pathsep.join([str(ROOT / 'tests' / 'forbidden'), str(ROOT)])}
  result = start(here, f'experiments.{module}', '--help', **environment)
  assert (result.returncode, result.stderr) == (0, '')
  assert f'python -m experiments.{module}' in result.stdout, 'the docstring shows the command'
  result = start(here, f'experiments.{module}', '--no_such_flag=1', **environment)
  assert result.returncode == 2
  assert result.stderr.count('\n') == 1 and 'unknown flag --no_such_flag' in result.stderr
