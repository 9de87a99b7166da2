"""The commit in the records is the one of crt_jax, or none."""

import shutil
import subprocess

import pytest

from crt_jax.runs import provenance


def git(folder, *words):
  names = ('-c', 'user.name=a', '-c', 'user.email=a@b.c')
  done = subprocess.run(
    ['git', '-C', folder, *names, *words], check=True, capture_output=True, text=True
  )
  return done.stdout.strip()


@pytest.mark.parametrize('folder, is_clone', [('', True), ('venv/site-packages', False)])
def test_the_commit_is_that_of_a_clone(tmp_path, monkeypatch, folder, is_clone):
  """Not that of a project whose environment holds the wheel."""
  file = tmp_path / folder / 'crt_jax' / 'runs' / 'provenance.py'
  file.parent.mkdir(parents=True)
  shutil.copy(provenance.__file__, file)
  git(tmp_path, 'init', '--quiet')
  git(tmp_path, 'add', '.')
  git(tmp_path, 'commit', '--quiet', '--message=first')
  monkeypatch.setattr(provenance, '__file__', str(file))
  head = git(tmp_path, 'rev-parse', 'HEAD')
  assert provenance.commit.__wrapped__() == (head if is_clone else '')


def test_an_origin_tells_machines_of_one_name_apart_and_says_how_busy_they_are(monkeypatch):
  monkeypatch.setattr(
    provenance.pathlib.Path,
    'read_text',
    lambda path, encoding: 'model name\t: EPYC\ncpu family\t: 25\nmodel\t\t: 17\nflags\t: a\n',
  )
  monkeypatch.setattr(provenance.os, 'getloadavg', lambda: (1.234, 5, 6))
  monkeypatch.setattr(provenance.os, 'sched_getaffinity', lambda process: {0})
  origin = provenance.origin()
  assert (origin['device'], origin['processor']) == ('EPYC (1 core)', 'family 25, model 17')
  assert origin['load'] == 1.23
