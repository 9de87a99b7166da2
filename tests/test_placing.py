"""Which rows a process reads: those that lie on its devices, wherever the mesh has put them."""

import jax
import numpy as np
import pytest

from crt_jax import placing, sharding
from tests.test_sharding import mesh_config

B, T = 16, 3
ROWS = np.arange(B * T).reshape(B, T)
LINE = list(range(8))
SNAKE = [0, 1, 3, 2, 6, 7, 5, 4]  # as a mesh may lie on a torus


@pytest.mark.parametrize('order', [LINE, SNAKE])
@pytest.mark.parametrize('processes', [1, 2, 4, 8])
@pytest.mark.parametrize(
  'shape',
  [
    dict(data=8),
    dict(data=4, tensor=2),
    dict(data=2, fsdp=2, tensor=2),
    dict(fsdp=2, tensor=4),
    dict(data=1, tensor=8),
  ],
)
def test_every_device_gets_its_rows_out_of_those_that_its_process_reads(shape, processes, order):
  mesh = sharding.make_mesh(mesh_config(**shape), [jax.devices()[i] for i in order])
  rows_of = sharding.batch_sharding(mesh)
  expected = {
    s.device: np.asarray(s.data) for s in jax.device_put(ROWS, rows_of).addressable_shards
  }
  index_of = rows_of.devices_indices_map((B, T))
  for devices in np.split(np.array(jax.devices()), processes):
    rows = placing.rows_held(B, rows_of, devices.tolist())
    for device in devices:
      found = placing.part(rows, ROWS[rows], index_of[device])
      np.testing.assert_array_equal(found, expected[device])
    needed = np.concatenate([expected[device] for device in devices])
    np.testing.assert_array_equal(ROWS[rows], np.unique(needed, axis=0))  # and no others


def test_rows_of_a_process_may_be_those_of_another_and_no_neighbours():
  devices = jax.devices()
  mesh = sharding.make_mesh(mesh_config(data=1, tensor=8))
  rows_of = sharding.batch_sharding(mesh)
  for device in devices:
    assert placing.rows_held(4, rows_of, [device]).tolist() == [0, 1, 2, 3]
  mesh = sharding.make_mesh(mesh_config(data=8), [devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)])
  rows_of = sharding.batch_sharding(mesh)
  assert placing.rows_held(8, rows_of, devices[:4]).tolist() == [0, 2, 4, 6]


def test_one_process_places_the_whole_batch():
  mesh = sharding.make_mesh(mesh_config(data=2, fsdp=2, tensor=2))
  place = placing.on_mesh(B, mesh)
  assert place.rows.tolist() == list(range(B))
  placed = place({'tokens': ROWS})['tokens']
  assert placed.sharding == sharding.batch_sharding(mesh)
  np.testing.assert_array_equal(placed, ROWS)
