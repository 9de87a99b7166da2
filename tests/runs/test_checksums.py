"""The checksum of arrays: a function of bits and positions, not of devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.runs import checkpoint as checkpoint_lib
from crt_jax.runs import checksums
from crt_jax.runs import train_state as state_lib
from tests.conftest import needs_float16
from tests.runs.test_checkpoint import (
  abstract_and_state,
  assert_same,
  at,
  optimizer_and_abstract,
  save_steps,
)
from tests.training.test_optimizer import optimizer_config


def checksum(x, kind=checksums.CHECKSUM):
  return checksums.describe({'x': jnp.asarray(x)}, kind)['x'][2]


def swapped(x, a, b):
  """With two of its elements, or rows, in each other's place."""
  x = x.copy()
  x[[a, b]] = x[[b, a]]
  return x


W = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)


@pytest.mark.parametrize(
  'other',
  [W[::-1], W[:, ::-1], swapped(W, 3, 5), np.roll(W, 1, 0), -W, W.T],
  ids=['rows', 'columns', 'two rows', 'roll', 'sign', 'transposed'],
)
def test_other_places_are_other_checksums(other):
  assert checksum(other) != checksum(W)


def test_the_plain_sum_did_not_see_that():
  assert checksum(W[::-1], 'sum') == checksum(W, 'sum')


def test_elements_far_apart_whose_low_bits_are_zero():
  """A weight that is linear in the position misses these: 2**16 places, and bits above 2**16."""
  x = np.zeros(1 << 17, np.float32)
  x[0], x[1 << 16] = 1.0, 2.0
  assert checksum(swapped(x, 0, 1 << 16)) != checksum(x)


@pytest.mark.parametrize(
  'dtype',
  ['bfloat16', pytest.param('float16', marks=needs_float16), 'float32', 'int32', 'int8', 'uint16'],
)
def test_of_every_type_each_bit_counts(dtype):
  x = jnp.arange(40, dtype=dtype).reshape(5, 8)
  sums = {checksum(x), checksum(x[::-1])}
  for place in ((0, 0), (2, 3), (4, 7)):
    sums.add(checksum(x.at[place].add(1)))
  assert len(sums) == 5


def test_of_float64():
  with jax.enable_x64(True):
    x = jnp.arange(6.0, dtype='float64').reshape(2, 3)
    assert len({checksum(x), checksum(x[::-1]), checksum(x.at[1, 1].add(1e-15))}) == 3


@pytest.mark.parametrize('mesh', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_it_is_the_same_on_every_mesh(mesh):
  _, state = abstract_and_state()
  _, abstract = optimizer_and_abstract(optimizer_config(), mesh)
  split = jax.device_put(state, state_lib.shardings_of(abstract))
  assert len(split.params['core']['weight'].sharding.device_set) == 8
  assert checksums.describe(split) == checksums.describe(state)


def test_it_says_what_is_not_finite():
  found = checksums.describe({'a': jnp.ones(3), 'b': jnp.array([1.0, jnp.nan]), 'c': jnp.arange(2)})
  assert [x[3] for x in found.values()] == [True, False, True]


def test_a_checkpoint_of_before_goes_on(tmp_path):
  """Its record names no kind of checksum, has plain sums, and none of its own."""
  abstract, state = save_steps(tmp_path, [1, 2])
  for step in (1, 2):
    file = tmp_path / 'checkpoints' / str(step) / 'record' / 'metadata'
    record = json.loads(file.read_text())
    sums = checksums.describe(at(state, step), 'sum')
    record['arrays'] = {name: x[:3] for name, x in sums.items()}
    del record['checksum'], record['sha256']
    if step == 2:
      record['arrays']['params/core/weight'][2] += 1
    file.write_text(json.dumps(record))
  checkpoints = checkpoint_lib.Checkpoints(tmp_path, 2)
  restored, _ = checkpoints.restore_latest(abstract)
  checkpoints.close()
  assert_same(restored, at(state, 1))  # 2 is damaged by its own measure
