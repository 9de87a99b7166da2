"""Kills, SIGTERM, a full disk, damage: the same command continues to the bits of a run that was
never interrupted."""

import os
import random
import resource
import signal
import time

import pytest

from tests.end_to_end import runs
from tests.training.tiny import assert_same_bits, params_of, rows_of, timeless

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('tokens')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, cache):
  path = tmp_path_factory.mktemp('runs') / 'uninterrupted'
  code, out = runs.finish(path, cache)
  assert code == 0, out
  return path


def assert_same_run(path, uninterrupted):
  assert_same_bits(params_of(path), params_of(uninterrupted))
  assert list(map(timeless, rows_of(path))) == list(map(timeless, rows_of(uninterrupted)))
  assert (path / 'samples/step_400.txt').read_text() == (
    uninterrupted / 'samples/step_400.txt'
  ).read_text()


def checkpoints_of(path):
  """The steps of the committed checkpoints, oldest first."""
  return sorted(int(p.name) for p in (path / 'checkpoints').iterdir() if p.name.isdigit())


def test_killed_again_and_again(tmp_path, cache, uninterrupted):
  """kill -9 at random moments, in the middle of steps and of checkpoints being written."""
  moments = random.Random(0)
  reached = 0
  for _ in range(5):
    process = runs.start(tmp_path, cache)
    out = runs.wait_for_step(process, min(reached + moments.randrange(5, 100), 395))
    time.sleep(moments.random() / 4)
    process.kill()
    process.communicate()
    assert 'Traceback' not in out
    reached = max([0, *checkpoints_of(tmp_path)])
  code, out = runs.finish(tmp_path, cache)
  assert code == 0, out
  assert f'continuing after step {reached}' in out
  assert_same_run(tmp_path, uninterrupted)


def test_killed_before_the_first_step(tmp_path, cache, uninterrupted):
  """While importing, reading data or compiling: at times that no line announces."""
  for delay in (1.0, 3.0, 5.0):
    process = runs.start(tmp_path, cache)
    time.sleep(delay)
    process.kill()
    process.communicate()
  code, out = runs.finish(tmp_path, cache)
  assert code == 0, out
  assert_same_run(tmp_path, uninterrupted)


def test_sigterm_saves_and_exits_with_75(tmp_path, cache, uninterrupted):
  process = runs.start(tmp_path, cache)
  runs.wait_for_step(process, 30)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 75, out
  assert 'run the same command to continue' in out
  last = checkpoints_of(tmp_path)[-1]
  assert last >= 30 and last >= rows_of(tmp_path)[-1]['step']
  code, out = runs.finish(tmp_path, cache)
  assert code == 0 and f'continuing after step {last}' in out
  assert_same_run(tmp_path, uninterrupted)
  # And once more: a finished run says so and touches nothing.
  before = {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob('*')]}
  code, out = runs.finish(tmp_path, cache)
  assert code == 0 and 'finished, at step 400; nothing to do' in out
  assert {p: p.stat().st_mtime_ns for p in [tmp_path, *tmp_path.rglob('*')]} == before


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, cache, uninterrupted):
  """A limit on the size of files stands for the disk: the first checkpoints were written before it
  filled."""
  process = runs.start(tmp_path, cache)
  runs.wait_for_step(process, 60)
  process.kill()
  process.communicate()
  kept = checkpoints_of(tmp_path)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
  try:
    code, out = runs.finish(tmp_path, cache)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert code != 0
  # Threads of the checkpoint library may still complain after it, on a slow machine.
  said = [line for line in out.splitlines() if line.startswith('error: ')]
  assert len(said) == 1 and 'could not be written' in said[0], out
  assert f'checkpoints/{kept[-1]};' in said[0] and checkpoints_of(tmp_path) == kept
  code, out = runs.finish(tmp_path, cache)
  assert code == 0, out
  assert_same_run(tmp_path, uninterrupted)


def test_damage_is_said_and_the_run_goes_on_from_the_one_before(tmp_path, cache, uninterrupted):
  process = runs.start(tmp_path, cache)
  runs.wait_for_step(process, 120)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  steps = checkpoints_of(tmp_path)
  newest = tmp_path / 'checkpoints' / str(steps[-1])
  largest = max((p for p in newest.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  code, out = runs.finish(tmp_path, cache)
  assert code == 0, out
  assert f'checkpoints/{steps[-1]} is damaged' in out
  assert f'continuing after step {steps[-2]}' in out
  assert_same_run(tmp_path, uninterrupted)
