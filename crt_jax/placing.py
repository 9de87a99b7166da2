"""Which rows of a global batch a process reads, and how they get onto its devices."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from crt_jax.sharding import batch_sharding
from crt_jax.types import Batch


def _as_it_is(batch: Mapping[str, np.ndarray]) -> Batch:
  return batch


@dataclasses.dataclass(frozen=True)
class Placement:
  """The rows of every global batch that this process reads, and how it places them.

  Attributes:
    rows: their numbers, ascending; None = all.
    put: makes the global batch of them.
  """

  rows: np.ndarray | None = None
  put: Callable[[Mapping[str, np.ndarray]], Batch] = _as_it_is

  def __call__(self, batch: Mapping[str, np.ndarray]) -> Batch:
    return self.put(batch)


ON_ONE_DEVICE = Placement()


def on_mesh(batch_size: int, mesh: Mesh) -> Placement:
  """Returns the placement of global batches of so many rows on a mesh, for this process.

  The rows follow from where the mesh has put the devices of this process. Several processes read
  the same rows where a model is split over them, and the rows of one need not be neighbours.
  """
  sharding = batch_sharding(mesh)
  rows = rows_held(batch_size, sharding, sharding.addressable_devices)

  def put(batch: Mapping[str, np.ndarray]) -> Batch:
    if sharding.is_fully_addressable:
      return jax.device_put(dict(batch), sharding)
    return {
      name: jax.make_array_from_callback(
        (batch_size, *local.shape[1:]), sharding, functools.partial(part, rows, local)
      )
      for name, local in batch.items()
    }

  return Placement(rows, put)


def rows_held(batch_size: int, sharding: NamedSharding, devices: Collection) -> np.ndarray:
  """Returns the indices of the rows that lie on some of the devices, ascending."""
  index_of = sharding.devices_indices_map((batch_size,))
  every = np.arange(batch_size)
  return np.unique(np.concatenate([every[index_of[device]] for device in devices]))


def part(rows: np.ndarray, local: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
  """Returns the slice `index` of a global batch, out of the rows that were read."""
  start, stop, _ = index[0].indices(int(rows[-1]) + 1)
  first = int(np.searchsorted(rows, start))
  return local[first : first + stop - start][(slice(None), *index[1:])]
