"""Verifies that a checkpoint is what was saved: names, shapes, and checksums of arrays and record.

Orbax makes a write atomic but does not see a flipped bit in a file; the checksums below do. They
are computed on the devices, in one pass over the arrays, and do not depend on how these are split.
"""

import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from crt_jax import json_text
from crt_jax.types import Tree

CHECKSUM = 'position-weighted'  # kind of checksum; older records do not name one


class Mismatch(ValueError):
  """A complete checkpoint that belongs to another model or another version."""


class OtherOptimizer(Mismatch):
  """A checkpoint of the model whose optimiser state has another structure."""

  def __init__(self, message: str, record: dict):
    super().__init__(message)
    self.record = record


class Damaged(ValueError):
  """Files of a checkpoint that are not what was written."""


def describe(tree: Tree, checksum: str = CHECKSUM) -> dict[str, list]:
  """Returns path -> [shape, dtype, checksum, whether all numbers are finite] of every array."""
  named = dict(_named_leaves(tree))
  read = jax.device_get(_read_once(named, checksum))
  return {
    name: [list(x.shape), str(x.dtype), int(read[name][0]), bool(read[name][1])]
    for name, x in named.items()
  }


@functools.partial(jax.jit, static_argnames='checksum')
def _read_once(named: dict, checksum: str) -> dict:
  """Returns every array's sum of words modulo 2**32, and whether the array is finite.

  The sum does not depend on the sharding.
  """
  of_words = {'sum': _words, CHECKSUM: _mixed_words}[checksum]
  return {
    name: (jnp.sum(of_words(x), dtype=jnp.uint32), jnp.isfinite(x).all())
    for name, x in named.items()
  }


def _words(x: jax.Array) -> jax.Array:
  """Returns an array's bits as unsigned words of at most 32 bits."""
  word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, word)


def _mixed_words(x: jax.Array) -> jax.Array:
  """Returns every word mixed with its position.

  Their sum modulo 2**32 then changes with any word and, but for one case in 2**32, with their
  order.
  """
  words = _words(x).astype(jnp.uint32)
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    stride = math.prod(words.shape[axis + 1 :]) % 2**32
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position += index * jnp.uint32(stride)
  return _mix(words ^ _mix(position))


def _mix(x: jax.Array) -> jax.Array:
  """Returns the last step of MurmurHash3: a permutation of all 32-bit words that mixes bits."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def verify(tree: Tree, record: dict) -> None:
  """Raises Damaged if an array's bits are not those that were saved."""
  for name, now in describe(tree, record.get('checksum', 'sum')).items():
    if record['arrays'][name][2] != now[2]:
      raise Damaged(f'checksum of {name} differs')


def signed(record: dict) -> dict:
  """Returns a record with the checksum of its own text."""
  record = json.loads(json_text.dumps(record))
  return {**record, 'sha256': _sha256(record)}


def check_record(record: dict) -> None:
  """Raises Damaged unless a record is what was saved; Mismatch for a record of a later version."""
  if record.get('checksum') is None and 'sha256' not in record:
    return  # saved before either checksum existed
  text = {name: value for name, value in record.items() if name != 'sha256'}
  if record.get('sha256') != _sha256(text):
    raise Damaged('the checksum of the record differs')
  if record['checksum'] != CHECKSUM:
    raise Mismatch(
      f'the checkpoint of step {record["step"]} has checksums of a later version '
      f'({record["checksum"]}); use that version'
    )


def _sha256(record: dict) -> str:
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_shapes(record: dict, tree: Tree) -> None:
  """Raises Mismatch, naming a parameter, unless the checkpoint has the model's parameters."""
  saved = {name: x[:2] for name, x in record['arrays'].items() if name.startswith('params/')}
  wanted = {name: [list(x.shape), str(x.dtype)] for name, x in _named_leaves(tree)}
  for name in sorted(saved.keys() | wanted.keys()):
    if saved.get(name) != wanted.get(name):
      raise Mismatch(
        f'checkpoint and config.model differ in {name}: {saved.get(name)} was saved, '
        f'{wanted.get(name)} is configured; '
        'a fork keeps the shapes of the model, another model needs a new --workdir'
      )


def check_optimizer(record: dict, folder: pathlib.Path, opt_state: optax.OptState) -> None:
  """Raises OtherOptimizer, naming what differs, unless the optimiser structures are equal.

  The structure includes parts without arrays, such as a switched-off gradient clip.

  Args:
    folder: the item `optimizer` of the checkpoint; only its list of parts is read.

  Raises:
    Damaged: that list is not the record's, which was written with it.
  """
  parts = _named_leaves({'opt_state': opt_state}, is_leaf=_is_empty)
  arrays = {name: x for name, x in parts if not _is_empty(x)}
  described = {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()}
  recorded = {n: x[:2] for n, x in record['arrays'].items() if n.startswith('opt_state/')}
  on_disk = _parts_on_disk(folder)
  if {name for name, is_array in on_disk.items() if is_array} != recorded.keys() | {'step'}:
    raise Damaged(f'{folder / METADATA} and the record list other arrays')
  saved, wanted = on_disk.keys() - {'step'}, {name for name, _ in parts}
  differing = [
    name
    for name in sorted(saved | wanted)
    if (name in saved) != (name in wanted) or recorded.get(name) != described.get(name)
  ]
  if differing:
    shown = ', '.join(f'{n} ({"saved" if n in saved else "configured"})' for n in differing[:3])
    more = f' and {len(differing) - 3} more' if len(differing) > 3 else ''
    raise OtherOptimizer(shown + more, record)


METADATA = '_METADATA'  # Orbax's list of an item's arrays


def _parts_on_disk(folder: pathlib.Path) -> dict[str, bool]:
  """Returns path -> whether it is an array, of all parts of a checkpoint item."""
  listed = json.loads((folder / METADATA).read_text('utf-8'))
  try:
    return {
      '/'.join(key['key'] for key in part['key_metadata']): (
        part['value_metadata']['value_type'] != 'None'
      )
      for part in listed['tree_metadata'].values()
    }
  except (KeyError, TypeError, AttributeError):
    raise Damaged(f'{folder / METADATA} is no list of arrays') from None


def _is_empty(x: object) -> bool:
  """Returns whether a part of an optimiser's state holds nothing, such as optax.EmptyState()."""
  return x is None or isinstance(x, tuple | dict | list) and not x


def _named_leaves(
  tree: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), x) for path, x in leaves]
