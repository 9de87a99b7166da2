"""The lock of a work directory: who holds it, on file systems with locks, without, and across
hosts."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from crt_jax.runs import lock, workdir
from experiments.jobs import attempts
from tests.training.tiny import tiny_config

HOLD = """
import pathlib, sys, time
from crt_jax.runs import lock
lock.REFRESH_SECONDS = 0.05
lock.hold(pathlib.Path(sys.argv[1]))
print('held', flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
  monkeypatch.setattr(lock, 'REFRESH_SECONDS', 0.05)
  monkeypatch.setattr(lock, 'LOOK_SECONDS', 0.5)
  monkeypatch.setattr(lock, 'LAST_WRITER_SECONDS', 0.2)
  monkeypatch.setattr(lock.preemption, 'leave', lambda code: None)  # it would end the tests
  with lock.released():
    yield


@pytest.fixture
def other(tmp_path):
  """Another process that holds the directory."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.communicate()


@pytest.fixture
def without_locks(monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(lock.fcntl, 'flock', flock)


def write(path, **fields):
  text = {'host': 'elsewhere', 'process': 17, 'since': 'noon', 'refreshed': 'now', **fields}
  # In place, as a holder does: a file that is truncated first is free for a moment.
  handle = os.open(path / 'lock', os.O_RDWR | os.O_CREAT)
  os.pwrite(handle, json.dumps(text).encode().ljust(lock.LENGTH), 0)
  os.close(handle)


@pytest.fixture
def elsewhere(tmp_path):
  """A process of another host, which renews its text."""
  ended = threading.Event()

  def renew():
    while not ended.wait(0.05):
      write(tmp_path, refreshed=time.monotonic())

  write(tmp_path)
  thread = threading.Thread(target=renew)
  thread.start()
  yield
  ended.set()
  thread.join()


def test_the_file_says_who_and_is_renewed_and_is_empty_at_the_end(tmp_path):
  with lock.released():
    lock.hold(tmp_path)
    first = json.loads((tmp_path / 'lock').read_text())
    assert first.keys() == {'host', 'process', 'since', 'refreshed'}
    assert (first['host'], first['process']) == (socket.gethostname(), os.getpid())
    assert attempts.is_held(tmp_path)
    time.sleep(0.5)
    later = json.loads((tmp_path / 'lock').read_text())
    assert later['since'] == first['since'] and later['refreshed'] > first['refreshed']
  assert (tmp_path / 'lock').read_bytes() == b'' and not attempts.is_held(tmp_path)
  # It is no sign of something else in the directory, and can be taken again.
  assert workdir.check_workdir(tmp_path, tiny_config(), fork=False) == {}
  lock.hold(tmp_path)


def test_another_process_is_named(tmp_path, other):
  with pytest.raises(ValueError, match='in use by another process') as caught:
    lock.hold(tmp_path)
  said = str(caught.value)
  assert f'(process {other.pid} on {socket.gethostname()} since 20' in said and '\n' not in said
  assert lock.holder(tmp_path)['process'] == other.pid and attempts.is_held(tmp_path)


def test_a_killed_holder_of_this_host_is_followed_at_once(tmp_path, other, capfd):
  other.kill()
  other.wait()
  assert lock.holder(tmp_path)['process'] == other.pid
  lock.hold(tmp_path)
  assert lock.holder(tmp_path)['process'] == os.getpid()
  assert 'waiting' not in capfd.readouterr().err


def test_a_process_of_another_host_that_lives_is_left_alone(tmp_path, elsewhere):
  """Although the lock itself was to be had: some file systems lock within a host only."""
  del elsewhere
  with pytest.raises(ValueError, match=r'in use .*\(process 17 on elsewhere since noon'):
    lock.hold(tmp_path)
  assert lock.holder(tmp_path)['host'] == 'elsewhere'


def test_a_process_of_another_host_that_is_silent_is_followed(tmp_path, capfd):
  write(tmp_path)
  lock.hold(tmp_path)
  assert lock.holder(tmp_path)['process'] == os.getpid()
  assert 'was held by process 17 on elsewhere' in capfd.readouterr().err


def test_who_was_taken_for_dead_leaves_the_directory_to_the_other(tmp_path, monkeypatch, capfd):
  ended = threading.Event()
  monkeypatch.setattr(lock.preemption, 'leave', lambda code: ended.set())
  lock.hold(tmp_path)
  write(tmp_path)  # as after a pause of this machine
  assert ended.wait(5)
  assert lock.holder(tmp_path)['process'] == 17
  assert 'taken over by process 17 on elsewhere since noon' in capfd.readouterr().err


@pytest.mark.usefixtures('without_locks')
class TestWithoutLocks:
  def test_it_is_said(self, tmp_path, capfd):
    lock.hold(tmp_path)
    [line] = capfd.readouterr().err.splitlines()
    assert 'this file system has no locks (No locks available)' in line
    assert lock.holder(tmp_path)['process'] == os.getpid()

  def test_a_process_that_lives_is_left_alone(self, tmp_path, other):
    with pytest.raises(ValueError, match=f'process {other.pid} on'):
      lock.hold(tmp_path)
    time.sleep(0.2)
    assert lock.holder(tmp_path)['process'] == other.pid

  def test_a_killed_one_is_followed(self, tmp_path, other):
    other.kill()
    other.wait()
    lock.hold(tmp_path)
    assert lock.holder(tmp_path)['process'] == os.getpid()

  def test_of_two_that_start_together_one_stays(self, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, 'is_alive', lambda path: False)
    threading.Timer(0.1, write, [tmp_path]).start()
    monkeypatch.setattr(lock, 'REFRESH_SECONDS', 60)
    with pytest.raises(ValueError, match='process 17 on elsewhere'):
      lock.hold(tmp_path)
    assert lock.holder(tmp_path)['process'] == 17


def test_an_error_that_is_none_of_locks_is_told(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(lock.fcntl, 'flock', flock)
  with pytest.raises(ValueError, match=r'cannot be written \(Input/output error\)'):
    workdir.open_workdir(tmp_path / 'run', tiny_config())


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', 'x' * 600])
def test_a_text_that_says_nothing_is_nobody(tmp_path, text):
  (tmp_path / 'lock').write_text(text)
  lock.hold(tmp_path)
  assert json.loads((tmp_path / 'lock').read_text()[: lock.LENGTH])['process'] == os.getpid()
