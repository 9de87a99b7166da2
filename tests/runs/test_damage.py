"""Only evidence moves a checkpoint: errors of input and output are tried again, then told in one
line, and nothing was changed."""

import errno
import json

import numpy as np
import pytest

from crt_jax import storage
from crt_jax.runs import checkpoint as checkpoint_lib
from crt_jax.runs import checksums, damage
from tests.runs.test_checkpoint import (
  abstract_and_state,
  assert_same,
  at,
  files_of,
  save_steps,
)


def tensorstore(status, code, words):
  """As TensorStore tells an error of the system, and Orbax passes it on."""
  text = (
    f'{status}: Error reading "core.weight/0.0" in OCDBT database at local file "/c/2/params/": '
    f'Failed to open: "/c/2/params/d/ab": {words} [os_error_code=\'{code}\']'
  )
  error = Exception('Encountered error while reading array index: (slice(0, 32, 1),)')
  error.__cause__ = ValueError(text)
  return error


UNREADABLE = {
  'stale': (OSError(errno.ESTALE, 'Stale file handle', '/c/2/record'), 'Stale file handle'),
  'rights': (PermissionError(errno.EACCES, 'Permission denied'), 'Permission denied'),
  'disk': (OSError(errno.EIO, 'Input/output error'), 'Input/output error'),
  'files': (OSError(errno.EMFILE, 'Too many open files'), 'Too many open files'),
  'memory': (MemoryError(), 'Cannot allocate memory'),
  'timeout': (TimeoutError(errno.ETIMEDOUT, 'Connection timed out'), 'Connection timed out'),
  'stale, in words': (tensorstore('ABORTED', 116, 'Stale file handle'), 'Stale file handle'),
  'disk, in words': (tensorstore('UNKNOWN', 5, 'Input/output error'), 'Input/output error'),
  'files, in words': (
    tensorstore('RESOURCE_EXHAUSTED', 24, 'Too many open files'), 'Too many open files'
  ),
  'rights, in words': (
    tensorstore('PERMISSION_DENIED', 13, 'Permission denied'), 'Permission denied'
  ),
  'a bucket': (ValueError('UNAVAILABLE: GCS read failed'), 'UNAVAILABLE'),
}  # fmt: skip


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  save_steps(path, [1, 2])
  return path


@pytest.fixture
def waits(monkeypatch):
  """The seconds that were waited, which do not pass."""
  seen = []
  monkeypatch.setattr(storage.time, 'sleep', seen.append)
  return seen


def fails(monkeypatch, error, times=99):
  """Lets reading a checkpoint fail a number of times; returns the list of tries."""
  read, tries = checkpoint_lib.read_state, []

  def reading(*arguments):
    tries.append(1)
    if len(tries) <= times:
      raise error
    return read(*arguments)

  monkeypatch.setattr(checkpoint_lib, 'read_state', reading)
  return tries


@pytest.mark.parametrize('name', UNREADABLE)
def test_what_cannot_be_read_is_no_damage(saved, monkeypatch, waits, capfd, name):
  error, words = UNREADABLE[name]
  tries = fails(monkeypatch, error)
  checkpoints = checkpoint_lib.Checkpoints(saved, 2)
  with pytest.raises(storage.OutOfReach) as caught:
    checkpoints.restore_latest(abstract_and_state()[0])
  checkpoints.close()
  file = '/c/2/record' if name == 'stale' else f'{saved}/checkpoints/2'
  assert str(caught.value) == f'{file}: {words}; nothing was changed; run the same command again'
  assert len(tries) == 1 + len(storage.WAITS) and waits == list(storage.WAITS)
  assert checkpoint_lib.steps_on_disk(saved / 'checkpoints') == [1, 2]
  assert not (saved / 'damaged').exists() and 'damaged' not in capfd.readouterr().err


def test_what_can_be_read_after_a_moment_is_read(saved, monkeypatch, waits):
  tries = fails(monkeypatch, UNREADABLE['stale, in words'][0], times=2)
  abstract, state = abstract_and_state()
  checkpoints = checkpoint_lib.Checkpoints(saved, 2)
  restored, _ = checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert_same(restored, at(state, 2))
  assert len(tries) == 3 and len(waits) == 2


@pytest.mark.parametrize(
  'error',
  [
    RuntimeError('a fault of ours'),
    AttributeError('another release'),
    TypeError('same'),
    ValueError('RESOURCE_EXHAUSTED: of the storage'),
  ],
)
def test_other_errors_are_passed_on(saved, monkeypatch, error):
  tries = fails(monkeypatch, error)
  checkpoints = checkpoint_lib.Checkpoints(saved, 2)
  with pytest.raises(type(error), match=str(error)):
    checkpoints.restore_latest(abstract_and_state()[0])
  checkpoints.close()
  assert len(tries) == 1 and checkpoint_lib.steps_on_disk(saved / 'checkpoints') == [1, 2]


def test_a_checkpoint_that_is_gone_is_no_damage(saved, monkeypatch):
  """As when another host has unmounted or removed it: there is nothing to move."""
  error = FileNotFoundError(errno.ENOENT, 'No such file or directory', '/gone/record')
  with pytest.raises(FileNotFoundError):
    damage.read(saved / 'gone', lambda: (_ for _ in ()).throw(error))


@pytest.mark.parametrize('item', ['record/metadata', 'optimizer/_METADATA', 'params/_METADATA'])
def test_a_flipped_bit_in_a_list_is_found_or_changes_nothing(tmp_path, item):
  abstract, state = save_steps(tmp_path, [1])
  file = tmp_path / 'checkpoints' / '1' / item
  whole, rng = file.read_bytes(), np.random.default_rng(0)
  found = 0
  with checkpoint_lib.QuietOrbax(), checkpoint_lib.reader(tmp_path / 'checkpoints') as manager:
    for _ in range(12):
      data = bytearray(whole)
      data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
      file.write_bytes(data)
      try:
        restored, record = damage.read(
          file.parents[1], checkpoint_lib.read_state, manager, 1, abstract
        )
        assert_same(restored, at(state, 1))
      except checksums.Damaged:
        found += 1
  assert found == 12 or item != 'record/metadata' and found > 6


def test_a_record_of_today_has_its_own_checksum(tmp_path):
  abstract, _ = save_steps(tmp_path, [1])
  file = tmp_path / 'checkpoints' / '1' / 'record' / 'metadata'
  record = json.loads(file.read_text())
  assert record['checksum'] == checksums.CHECKSUM
  file.write_text(json.dumps({**record, 'training_seconds': 7.0}))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(ValueError, match='none of the checkpoints'):
    checkpoints.restore_latest(abstract)
  checkpoints.close()


def test_a_later_version_is_no_damage(tmp_path):
  abstract, _ = save_steps(tmp_path, [1])
  file = tmp_path / 'checkpoints' / '1' / 'record' / 'metadata'
  record = json.loads(file.read_text())
  record.pop('sha256')
  file.write_text(json.dumps(checksums.signed({**record, 'checksum': 'of tomorrow'})))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(checksums.Mismatch, match=r'a later version \(of tomorrow\)'):
    checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert len(files_of(tmp_path / 'checkpoints')) > 0
