"""Whose a work directory is, and its config as JSON."""

import os
import subprocess
import sys

import pytest

from crt_jax import json_text
from crt_jax.runs import lock, workdir
from tests.training.tiny import tiny_config


@pytest.fixture(autouse=True)
def _locks():
  with lock.released():
    yield


def open_new(path, config=None):
  config = config or tiny_config()
  assert workdir.check_workdir(path, config, fork=False) == {}
  return workdir.open_workdir(path, config)


def test_config_comes_back_from_json(tmp_path):
  config = tiny_config(**{'eval.depths': (1, 2)})
  open_new(tmp_path / 'run', config)
  again = workdir.config_of(workdir.saved_config(tmp_path / 'run'))
  assert again.to_dict() == config.to_dict()
  assert again.is_locked and again.eval.depths == (1, 2)
  assert workdir.check_workdir(tmp_path / 'run', again, fork=False) == {}


def test_a_run_that_another_process_has_begun_meanwhile_is_looked_at_again(tmp_path):
  with lock.released():
    open_new(tmp_path / 'run')
  with pytest.raises(ValueError, match='seed'):
    workdir.open_workdir(tmp_path / 'run', tiny_config(seed=7))
  assert workdir.saved_config(tmp_path / 'run')['seed'] == tiny_config().seed


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(ValueError, match=r'holds something else \(thesis.tex\)'):
    open_new(tmp_path)
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_an_empty_directory_and_one_that_was_just_begun_are_fine(tmp_path):
  (tmp_path / 'config.json.partial').write_text('{"conf')  # killed while it was written
  assert open_new(tmp_path).path == tmp_path


@pytest.mark.parametrize('place', ['file', 'file/below'])
def test_a_path_that_cannot_be_a_directory_is_named(tmp_path, place):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=f'--workdir={tmp_path}/{place}'):
    open_new(tmp_path / place)


def test_a_directory_without_rights_is_refused(tmp_path):
  with pytest.raises(ValueError, match='--workdir=/proc/no_such_run cannot be written'):
    open_new('/proc/no_such_run')


@pytest.mark.parametrize('text', ['{"config": ', '{}', '[1]', '7'])
def test_damaged_config_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=f'{tmp_path}/config.json is damaged'):
    open_new(tmp_path)


def test_two_processes_do_not_train_in_one_directory(tmp_path):
  open_new(tmp_path / 'run')
  program = (
    'import sys; from crt_jax.runs import workdir; import pathlib\n'
    'try: workdir.hold(pathlib.Path(sys.argv[1]))\n'
    'except ValueError as error: print(error)'
  )
  command = [sys.executable, '-c', program, str(tmp_path / 'run')]
  out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert 'is in use by another process' in out


def test_a_run_that_is_older_than_a_field_goes_on(tmp_path):
  """It counts as the field's default; with another value it is another run."""
  open_new(tmp_path)
  config = workdir.saved_config(tmp_path)
  del config['mesh']['gather'], config['train']['init_from']
  json_text.write(tmp_path / 'config.json', {'config': config, 'forks': []})
  assert workdir.check_workdir(tmp_path, tiny_config(), fork=False) == {}
  with pytest.raises(ValueError, match=r"train.init_from \(was '', now 'runs/other'\)"):
    workdir.check_workdir(tmp_path, tiny_config(**{'train.init_from': 'runs/other'}), fork=False)
