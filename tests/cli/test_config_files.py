"""Config files: arguments with types, near matches, and every config of the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from crt_jax.cli import config_files
from crt_jax.cli.config_files import closest_field, fields, find, load, name, parse_arguments
from crt_jax.cli.user_errors import Mistake

ROOT = Path(__file__).parents[2]
DEFAULTS = dict(R=8, rate=0.5, small=False, corpus='sotu')


@pytest.fixture
def here(tmp_path, monkeypatch):
  """An empty directory with configs/, as the current one."""
  (tmp_path / 'configs').mkdir()
  monkeypatch.chdir(tmp_path)
  return tmp_path


def write(here, file, text):
  (here / file).write_text(text)
  return file


def test_arguments_take_the_types_of_their_defaults():
  given = parse_arguments('R=4, rate=1,small,corpus=tfds', **DEFAULTS)
  assert vars(given) == dict(R=4, rate=1.0, small=True, corpus='tfds')
  assert isinstance(given.rate, float)
  assert vars(parse_arguments('', **DEFAULTS)) == DEFAULTS
  assert parse_arguments('small=false', small=True).small is False


@pytest.mark.parametrize(
  'text, words',
  [
    ('Q=4', ['Q', 'known: R, rate, small, corpus']),
    ('rat=1', ['did you mean rate?']),
    ('R=four', ['R=four', 'whole number', 'R=8']),
    ('R=1.5', ['whole number']),
    ('R', ['whole number']),
    ('small=maybe', ['true or false']),
    ('R=1,R=2', ["'R' is given twice"]),
  ],
)
def test_wrong_arguments(text, words):
  with pytest.raises(ValueError) as error:
    parse_arguments(text, **DEFAULTS)
  assert '\n' not in str(error.value)
  assert all(word in str(error.value) for word in words), error.value


def test_load_passes_arguments_and_locks(here):
  file = write(
    here,
    'configs/a.py',
    'from ml_collections import ConfigDict\n'
    'from crt_jax.cli import parse_arguments\n'
    "def get_config(arguments=''):\n"
    '  return ConfigDict(dict(R=parse_arguments(arguments, R=8).R))\n',
  )
  assert load(file).R == 8
  config = load(f'{file}:R=3')
  assert config.R == 3
  with pytest.raises(AttributeError):
    config.new = 1


@pytest.mark.parametrize(
  'text, spec, line',
  [
    ('x = 1\ndef get_config():\n  return y\n', '', "configs/a.py:3: NameError: name 'y'"),
    ('def get_config(:\n', '', 'configs/a.py:1: '),
    ('import nothing_like_it\n', '', 'configs/a.py:1: ModuleNotFoundError'),
    ('x = 1\n', '', 'configs/a.py is no config: it defines no function get_config()'),
    ('def get_config():\n  pass\n', '', 'configs/a.py: get_config() returned NoneType'),
    ('def get_config():\n  pass\n', ':R=8', "configs/a.py takes no arguments: leave out ':R=8'"),
    (
      "def get_config(a=''):\n  raise ValueError('two\\nlines')\n",
      '',
      'configs/a.py:2: ValueError',
    ),
  ],
)
def test_an_error_in_a_config_names_file_and_line(here, text, spec, line):
  with pytest.raises(Mistake) as error:
    load(write(here, 'configs/a.py', text) + spec)
  assert str(error.value).startswith(line)
  assert '\n' not in str(error.value)


def test_a_changed_config_is_read_anew(here):
  text = (
    'from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict(dict(a=1))\n'
  )
  assert load(write(here, 'configs/a.py', text)).a == 1
  assert load(write(here, 'configs/a.py', text.replace('a=1', 'a=2'))).a == 2


@pytest.mark.parametrize(
  'path', ['configs/quikstart.py', 'quickstart', 'quickstart.py', 'qickstart']
)
def test_a_missing_file_gets_a_near_match(here, monkeypatch, path):
  monkeypatch.setattr(config_files, '_roots', lambda: (here,))
  write(here, 'configs/quickstart.py', '"""Short."""\ndef get_config():\n  pass\n')
  write(here, 'configs/base.py', 'def helper():\n  pass\n')
  with pytest.raises(Mistake, match=r'did you mean configs/quickstart.py\?'):
    find(path)
  with pytest.raises(Mistake, match=r'there are configs/quickstart.py$'):
    find('zzz')
  assert config_files.available() == {'configs/quickstart.py': 'Short.'}


def test_configs_are_found_from_any_directory(here):
  known = [file for file in config_files.available() if file.startswith('configs/')]
  assert known, 'the configs of the clone'
  assert find(known[0]).is_file()


OWN = """
from ml_collections import ConfigDict
from configs import base
def get_config():
  return ConfigDict(dict(base=base.__file__))
"""


@pytest.mark.parametrize('name', ['configs/__init__.py', 'configs/own.py', 'own.py'])
def test_configs_are_those_of_the_file(here, name):
  """A `configs` of one's own and the clone's do not take each other's place."""
  elsewhere = here / 'elsewhere'
  (elsewhere / 'configs').mkdir(parents=True)
  for folder in (here, elsewhere):
    write(folder, 'configs/__init__.py', '')
    write(folder, 'configs/base.py', '')
    write(folder, name, OWN)
  ask = 'import sys; from crt_jax.cli import config_files; c = config_files.load(sys.argv[1])'

  def base_of(file):
    command = [sys.executable, '-c', f'{ask}; print(c.base if "base" in c else c.model.name)', file]
    path = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=here, env=path, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  assert base_of(f'elsewhere/{name}') == str(elsewhere / 'configs/base.py')
  assert base_of(name) == str(here / 'configs/base.py')
  assert base_of('configs/quickstart.py') == 'crt'


def test_name():
  assert name('configs/cart_d1024.py') == 'cart_d1024'
  assert name('configs/cart_d1024.py:R=8,P=4') == 'cart_d1024-R=8,P=4'
  assert '/' not in name('configs/a.py:corpus=/tmp/x')


def test_fields_have_types_and_values():
  config = ConfigDict(dict(width=64, train=dict(lr=1e-3, depths=(1, 2))))
  config.wide = config.get_ref('width') * 4
  config.limit = ConfigDict(dict(most=1)).get_ref('most')
  assert fields(config) == {
    'width': (int, 64),
    'wide': (int, 256),
    'limit': (int, 1),
    'train.lr': (float, 1e-3),
    'train.depths': (tuple, (1, 2)),
  }


@pytest.mark.parametrize(
  'wrong, right',
  [
    ('train.stps', 'train.steps'),
    ('trian.steps', 'train.steps'),
    ('steps', 'train.steps'),
    ('model.steps', 'train.steps'),
    ('sed', 'seed'),
    ('evl.seed', 'eval.seed'),
    ('train.zzz', None),
    ('zzz', None),
  ],
)
def test_closest_field(wrong, right):
  known = dict.fromkeys(['seed', 'eval.seed', 'model.width', 'train.lr', 'train.steps'])
  assert closest_field(wrong, known) == right
