"""`python -m experiments.NAME` without jax: it goes on in .venv, or says how to install."""

import pathlib
import shutil
import subprocess
import sys

import pytest

import experiments


@pytest.fixture
def run(tmp_path):
  """Calls an entry point of a clone of nothing else, without any installed package."""
  folder = tmp_path / 'experiments'
  folder.mkdir()
  shutil.copy(experiments.__file__, folder)
  (folder / 'main.py').write_text('print("began")')

  def call():
    words = [sys.executable, '-S', '-m', 'experiments.main', '--config=a b.py']
    return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

  return call


def test_without_an_environment_it_says_how_to_make_one(run):
  done = run()
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert 'make quickstart' in done.stderr


def test_it_goes_on_in_the_environment_of_the_clone(run, tmp_path):
  python = tmp_path / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  python.chmod(0o755)
  done = run()
  assert (done.returncode, done.stdout) == (0, '-S\n-m\nexperiments.main\n--config=a b.py\n')
  assert str(pathlib.Path('.venv') / 'bin' / 'python') in done.stderr
