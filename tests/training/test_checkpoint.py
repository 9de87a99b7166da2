"""Checkpoints: the same bits come back, onto any mesh; damage is seen, whatever its kind, and the
one before is used."""

import contextlib
import dataclasses
import os
import pathlib
import resource
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from crt_jax import sharding
from crt_jax.training import checkpoint as checkpoint_lib
from crt_jax.training import integrity
from crt_jax.training import optimizer as optimizer_lib
from crt_jax.training import state as state_lib
from tests.training.fake_model import FakeModel
from tests.training.test_optimizer import optimizer_config

MODEL = FakeModel(vocab=64, width=32)


def abstract_and_state(mesh_shape=(1, 1, 1), model=MODEL):
  sizes = dict(zip(sharding.MESH_AXES, mesh_shape, strict=True))
  devices = jax.devices()[: int(np.prod(mesh_shape))]
  mesh = sharding.make_mesh(ml_collections.ConfigDict(sizes), devices)
  tx = optimizer_lib.make_optimizer(optimizer_config(), model, 10)
  abstract = state_lib.abstract_state(model, tx, mesh)
  return abstract, state_lib.init_state(model, tx, abstract, seed=0)


def at(state, step):
  """The state with another step and, so that states differ, other parameters."""
  params = jax.tree.map(lambda x: x + step, state.params)
  return dataclasses.replace(state, step=state.step * 0 + step, params=params)


def save_steps(directory, steps, keep=2, cross_entropies=None):
  abstract, state = abstract_and_state()
  checkpoints = checkpoint_lib.Checkpoints(directory, keep)
  for index, step in enumerate(steps):
    measured = cross_entropies[index] if cross_entropies else None
    checkpoints.save(at(state, step), {'training_seconds': step / 2}, measured)
  checkpoints.wait()
  checkpoints.close()
  return abstract, state


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_saved_comes_back_onto_another_mesh(tmp_path):
  _, state = save_steps(tmp_path, [5])
  abstract, _ = abstract_and_state((2, 2, 2))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  restored, record = checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert_same(restored, at(state, 5))
  assert record['training_seconds'] == 2.5
  weight = restored.params['core']['weight']
  assert weight.sharding == abstract.params['core']['weight'].sharding
  assert len(weight.sharding.device_set) == 8


def test_nothing_yet_is_none(tmp_path):
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  assert checkpoints.restore_latest(abstract_and_state()[0]) is None
  checkpoints.close()


def test_newest_and_best_are_kept(tmp_path):
  save_steps(tmp_path, [1, 2, 3, 4, 5], keep=2, cross_entropies=[3.0, 1.0, None, 2.0, 1.5])
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [2, 4, 5]


def test_state_may_be_donated_while_it_is_written(tmp_path):
  """What is on disk is the state at the call of save, not what its buffers held later."""
  abstract, state = abstract_and_state()
  expected = jax.tree.map(np.array, state)
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  checkpoints.save(state, {})
  overwrite(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert_same(restored, expected)


def truncate(step_folder):
  largest = max(files_of(step_folder), key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)


def flip_a_bit(step_folder):
  largest = max(files_of(step_folder), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 0x10
  largest.write_bytes(data)


def remove_an_item(step_folder):
  shutil.rmtree(step_folder / 'optimizer')


def empty_the_record(step_folder):
  (step_folder / 'record' / 'metadata').write_text('')


def files_of(folder):
  return [p for p in pathlib.Path(folder).rglob('*') if p.is_file()]


@pytest.mark.parametrize('damage', [truncate, flip_a_bit, remove_an_item, empty_the_record])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, capfd, damage):
  abstract, state = save_steps(tmp_path, [1, 2])
  damage(tmp_path / 'checkpoints' / '2')
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  restored, _ = checkpoints.restore_latest(abstract)
  assert_same(restored, at(state, 1))
  warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith('warning:')]
  assert len(warnings) == 1
  assert 'checkpoints/2 is damaged' in warnings[0] and 'falling back' in warnings[0]
  # Its step can be reached and saved again.
  checkpoints.save(at(state, 2), {})
  checkpoints.wait()
  assert_same(checkpoints.restore_latest(abstract)[0], at(state, 2))
  checkpoints.close()


def test_every_flipped_bit_is_seen(tmp_path):
  """Anywhere in the data files: by the storage library, or else by our checksum."""
  abstract, state = save_steps(tmp_path / 'whole', [1])
  rng = np.random.default_rng(0)
  files = files_of(tmp_path / 'whole' / 'checkpoints' / '1' / 'params' / 'ocdbt.process_0')
  for trial in range(6):
    copy = tmp_path / f'copy_{trial}'
    shutil.copytree(tmp_path / 'whole', copy)
    file = copy / max(files, key=lambda p: p.stat().st_size).relative_to(tmp_path / 'whole')
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)
    checkpoints = checkpoint_lib.Checkpoints(copy, 2)
    with pytest.raises(ValueError, match='none of the checkpoints'):
      checkpoints.restore_latest(abstract)
    checkpoints.close()


def test_checksum_alone_sees_other_values(tmp_path):
  abstract, state = save_steps(tmp_path, [1])
  record = {'arrays': integrity.describe(state)}
  integrity.verify(state, record)
  weight = state.params['head']['weight']
  other = {**state.params, 'head': {**state.params['head'], 'weight': weight.at[3, 3].add(1e-6)}}
  with pytest.raises(ValueError, match='checksum of params/head/weight'):
    integrity.verify(dataclasses.replace(state, params=other), record)


def test_another_model_is_no_damage(tmp_path):
  save_steps(tmp_path, [1])
  abstract, _ = abstract_and_state(model=FakeModel(vocab=64, width=16))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(ValueError, match=r'differ in params/core/bias: .*\[32\].*\[16\]'):
    checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [1]


def test_a_device_without_memory_is_no_damage(tmp_path, monkeypatch):
  abstract, _ = save_steps(tmp_path, [1, 2])

  def read(*arguments):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(checkpoint_lib, 'read_state', read)
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(jax.errors.JaxRuntimeError, match='Out of memory'):
    checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [1, 2]


def test_a_failed_write_is_one_line_and_keeps_the_last_good_one(tmp_path):
  abstract, state = save_steps(tmp_path, [1])
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with largest_file(2000), pytest.raises(OSError) as caught:
    checkpoints.save(at(state, 2), {})
    checkpoints.wait()
  checkpoints.close()
  message = str(caught.value)
  assert '\n' not in message
  assert (
    'could not be written' in message and f'last good one is {tmp_path}/checkpoints/1;' in message
  )
  # With space again. Another step, since TensorStore may still be busy with the failed one in this
  # process; that a new process saves the same step is tested end to end.
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  assert_same(checkpoints.restore_latest(abstract)[0], at(state, 1))
  checkpoints.save(at(state, 3), {})
  checkpoints.wait()
  assert_same(checkpoints.restore_latest(abstract)[0], at(state, 3))
  checkpoints.close()


@contextlib.contextmanager
def largest_file(size):
  """Stands for a full disk: writing beyond `size` bytes of a file fails."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
