"""Checkpoints: the same bits come back, onto any mesh; damage is seen, whatever its kind, and the
one before is used."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from crt_jax import sharding
from crt_jax.runs import checkpoint as checkpoint_lib
from crt_jax.runs import checksums, metrics
from crt_jax.runs import train_state as state_lib
from crt_jax.training import optimizer as optimizer_lib
from tests.training.fake_model import FakeModel
from tests.training.test_optimizer import optimizer_config

MODEL = FakeModel(vocab=64, width=32)


@functools.cache
def abstract_and_state(mesh_shape=(1, 1, 1), model=MODEL):
  tx, abstract = optimizer_and_abstract(optimizer_config(), mesh_shape, model)
  return abstract, state_lib.init_state(model, tx, abstract, seed=0)


def optimizer_and_abstract(config, mesh_shape=(1, 1, 1), model=MODEL):
  sizes = dict(zip(sharding.MESH_AXES, mesh_shape, strict=True))
  devices = jax.devices()[: int(np.prod(mesh_shape))]
  mesh = sharding.make_mesh(ml_collections.ConfigDict(sizes), devices)
  tx = optimizer_lib.make_optimizer(config, model, 10)
  return tx, state_lib.abstract_state(model, tx, mesh)


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
  _, abstract = optimizer_and_abstract(optimizer_config(), (2, 2, 2))
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


@pytest.mark.parametrize('keep', [1, 2])
def test_a_loss_that_is_not_finite_is_the_worst(tmp_path, keep):
  save_steps(tmp_path, [1, 2, 3, 4, 5], keep, [3.0, 1.0, np.nan, 2.0, 2.5])
  expected = {1: [2, 5], 2: [2, 4, 5]}[keep]
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == expected


def test_a_nan_that_was_written_before_is_the_worst_too(tmp_path):
  save_steps(tmp_path, [1, 2], 1, [1.0, 5.0])
  file = tmp_path / 'checkpoints' / '2' / 'metrics' / 'metrics'
  assert '5.0' in file.read_text()
  file.write_text(file.read_text().replace('5.0', 'NaN'))
  save_steps(tmp_path, [3, 4], 1, [2.0, 2.5])
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [1, 4]


@pytest.mark.parametrize('text', ['', '{"cross_en', '{"cross_entropy": "', '{}', 'null', '7'])
def test_damaged_metrics_of_a_checkpoint_do_not_stop_a_run(tmp_path, text):
  abstract, state = save_steps(tmp_path, [1, 2], 2, [1.0, 5.0])
  (tmp_path / 'checkpoints' / '2' / 'metrics' / 'metrics').write_text(text)
  with checkpoint_lib.reader(tmp_path / 'checkpoints') as manager:
    assert checkpoint_lib.read_record(manager, 2)['step'] == 2
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  restored, _ = checkpoints.restore_latest(abstract)
  assert_same(restored, at(state, 2))
  checkpoints.save(at(state, 3), {}, 0.5)
  checkpoints.wait()
  checkpoints.save(at(state, 4), {}, 2.5)
  checkpoints.wait()
  checkpoints.close()
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [3, 4]


@pytest.mark.parametrize(
  ('cross_entropies', 'kept'),
  [([None, None, None], [2, 3]), ([2.0, None, np.inf], [1, 2, 3]), ([2.0, 3.0, 1.0], [3])],
)
def test_the_last_checkpoint_to_continue_from_is_kept(tmp_path, cross_entropies, kept):
  """The newest may prove to be none: its own loss is known after the next step, or measured."""
  save_steps(tmp_path, [1, 2, 3], 1, cross_entropies)
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == kept


def test_what_is_not_finite_is_not_saved(tmp_path):
  _, state = save_steps(tmp_path, [1])
  weight = state.params['head']['weight'].at[3, 3].set(np.inf)
  broken = dataclasses.replace(at(state, 2), params={**state.params, 'head': {'weight': weight}})
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(metrics.NonFinite, match='params/head/weight after its update'):
    checkpoints.save(broken, {})
  checkpoints.wait()
  checkpoints.close()
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [1]


def test_no_file_of_a_checkpoint_has_a_number_that_is_not_finite(tmp_path):
  save_steps(tmp_path, [1], cross_entropies=[np.nan])
  record = json.loads((tmp_path / 'checkpoints' / '1' / 'record' / 'metadata').read_text())
  assert record['validation_cross_entropy'] is None
  for file in files_of(tmp_path / 'checkpoints'):
    assert b'NaN' not in file.read_bytes() and b'Infinity' not in file.read_bytes(), file


@pytest.mark.parametrize(
  ('cross_entropies', 'limit', 'good'),
  [
    ([1.0, 2.0, 3.0], 3, 3),
    ([1.0, 2.0, 3.0], 2, 2),
    ([1.0, np.nan, None], 3, 3),
    ([1.0, np.nan, np.inf], 3, 1),
    ([np.nan, 1.0, None], 1, None),
  ],
)
def test_the_run_goes_back_to_the_last_good_checkpoint(tmp_path, cross_entropies, limit, good):
  save_steps(tmp_path, [1, 2, 3], 3, cross_entropies)
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 3)
  assert checkpoints.back_to_good(limit) == good
  checkpoints.close()
  left = checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints')
  assert left == [1, 2, 3][: good or 0]
  moved = sorted(p.name for p in tmp_path.glob('diverged/*'))
  assert moved == [f'{step}.0' for step in (1, 2, 3) if step not in left]


STRUCTURES = {
  'no clip': dict(clip_norm=0.0),
  'no decay': dict(weight_decay=0.0),
  'frozen': dict(frozen=('core',)),
  'adam': dict(name='adam', weight_decay=0.0),
}


@pytest.mark.parametrize('name', STRUCTURES)
def test_another_optimizer_is_no_damage(tmp_path, name):
  """It is found before an array is read; asked for, its state begins anew."""
  _, state = save_steps(tmp_path, [1, 3])
  tx, abstract = optimizer_and_abstract(optimizer_config(**STRUCTURES[name]))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(checksums.OtherOptimizer, match='opt_state/'):
    checkpoints.restore_latest(abstract)
  with_new_optimizer = state_lib.with_new_optimizer(tx, abstract)
  restored, record = checkpoints.restore_latest(abstract, with_new_optimizer)
  checkpoints.close()
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [1, 3]
  assert not (tmp_path / 'damaged').exists()
  assert_same(restored.params, at(state, 3).params)
  assert int(restored.step) == record['step'] == 3
  arrays = dict(checksums._named_leaves(restored.opt_state))
  counts = [int(x) for name, x in arrays.items() if name.endswith('count')]
  assert counts == [0, 3]  # of Adam, and of its rate, which goes on
  assert not any(x.any() for name, x in arrays.items() if not name.endswith('count'))
  assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
    lambda x: x.sharding, abstract
  )


def test_the_same_structure_keeps_its_state_although_a_new_one_is_offered(tmp_path):
  """So that the command of a fork can be run again, as a cluster does."""
  abstract, state = save_steps(tmp_path, [1])
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  restored, _ = checkpoints.restore_latest(abstract, with_new_optimizer=lambda *_: None)
  checkpoints.close()
  assert_same(restored, at(state, 1))


def test_state_may_be_donated_while_it_is_written(tmp_path):
  """What is on disk is the state at the call of save, not what its buffers held later."""
  abstract, state = abstract_and_state()
  expected = jax.tree.map(np.array, state)
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  state = jax.tree.map(jnp.copy, state)  # the original is shared by these tests
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
  record = {'arrays': checksums.describe(state), 'checksum': checksums.CHECKSUM}
  checksums.verify(state, record)
  weight = state.params['head']['weight']
  other = {**state.params, 'head': {**state.params['head'], 'weight': weight.at[3, 3].add(1e-6)}}
  with pytest.raises(ValueError, match='checksum of params/head/weight'):
    checksums.verify(dataclasses.replace(state, params=other), record)


def test_another_model_is_no_damage(tmp_path):
  save_steps(tmp_path, [1])
  _, abstract = optimizer_and_abstract(optimizer_config(), model=FakeModel(vocab=64, width=16))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(ValueError, match=r'differ in params/core/bias: .*\[32\].*\[16\]'):
    checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert checkpoint_lib.steps_on_disk(tmp_path / 'checkpoints') == [1]


@pytest.mark.parametrize('said', ['RESOURCE_EXHAUSTED: Out of memory', 'FAILED_PRECONDITION: DNN'])
def test_an_error_of_the_device_is_no_damage(tmp_path, monkeypatch, said):
  abstract, _ = save_steps(tmp_path, [1, 2])

  def read(*arguments):
    raise jax.errors.JaxRuntimeError(said)

  monkeypatch.setattr(checkpoint_lib, 'read_state', read)
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  with pytest.raises(jax.errors.JaxRuntimeError, match=said):
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
