"""A readable table of how every parameter is sharded, and its bytes on one device."""

import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from crt_jax import sharding
from crt_jax.runs.train_state import TrainState
from crt_jax.types import Array

COLUMNS = ('parameter', 'shape', 'axes', 'split over', 'bytes a device', 'bytes')


def shard_bytes(tree: Any) -> int:
  """Returns the bytes that a tree of arrays (or ShapeDtypeStructs) takes on one device."""
  return sum(_shard_bytes(x) for x in jax.tree.leaves(tree))


def whole_bytes(tree: Any) -> int:
  """Returns the bytes of a tree of arrays, each counted once."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def layout(axes: Any, abstract: TrainState) -> str:
  """Returns the text of sharding.txt: a line per parameter, then sums.

  Args:
    axes: of the model, a PartitionSpec of logical names for each parameter.
    abstract: the state's shapes and shardings (state.abstract_state).
  """
  names = dict(jax.tree_util.tree_flatten_with_path(axes, is_leaf=sharding.is_spec)[0])
  rows = [COLUMNS]
  for path, x in jax.tree_util.tree_flatten_with_path(abstract.params)[0]:
    rows.append(
      (
        jax.tree_util.keystr(path, simple=True, separator='/'),
        _listed(x.shape),
        _listed(names[path]),
        _listed(axis or '-' for axis in _padded(x.sharding.spec, x.ndim)),
        f'{_shard_bytes(x):,}',
        f'{x.size * x.dtype.itemsize:,}',
      )
    )
  for name, tree in (
    ('all parameters', abstract.params),
    ('optimiser state', abstract.opt_state),
    ('all that is kept', abstract),
  ):
    rows.append((name, '', '', '', f'{shard_bytes(tree):,}', f'{whole_bytes(tree):,}'))
  widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
  mesh = jax.tree.leaves(abstract)[0].sharding.mesh
  sizes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  lines = [
    f'mesh of {math.prod(mesh.shape.values())} devices: {sizes}. The moments of the optimiser lie '
    'as their parameters do.',
    '',
  ]
  for row in rows:
    texts = [text.ljust(w) for text, w in zip(row[:4], widths[:4], strict=True)]
    numbers = [text.rjust(w) for text, w in zip(row[4:], widths[4:], strict=True)]
    lines.append('  '.join([*texts, *numbers]).rstrip())
  return '\n'.join(lines) + '\n'


def _shard_bytes(x: Array) -> int:
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _padded(spec: PartitionSpec, ndim: int) -> tuple:
  return (*spec, *(None,) * (ndim - len(spec)))


def _listed(values: Iterable) -> str:
  return ' x '.join(map(str, values)) or 'scalar'
