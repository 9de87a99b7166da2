"""Whether what was read is what was saved: shapes by name, and a checksum of every array's bits.

Orbax makes a write atomic but does not see a flipped bit in a file; the sums below do. They are
computed on the devices, in one pass over the arrays, and do not depend on how these are split.
"""

from typing import Any

import jax
import jax.numpy as jnp


class Mismatch(ValueError):
  """A checkpoint that is whole but belongs to another model."""


def describe(tree) -> dict[str, list]:
  """Returns path -> [shape, dtype, checksum] of every array."""
  named = dict(_named_leaves(tree))
  sums = jax.device_get(_checksums(named))
  return {name: [list(x.shape), str(x.dtype), int(sums[name])] for name, x in named.items()}


@jax.jit
def _checksums(named: dict) -> dict:
  """Sums every array's bits as 32-bit words, modulo 2**32: the same number whatever the
  sharding."""

  def checksum(x):
    word = (
      jnp.uint8 if x.dtype.itemsize == 1 else jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32
    )
    return jnp.sum(jax.lax.bitcast_convert_type(x, word), dtype=jnp.uint32)

  return {name: checksum(x) for name, x in named.items()}


def verify(tree, record: dict) -> None:
  """Raises ValueError if an array's bits are not those that were saved."""
  for name, (_, _, checksum) in describe(tree).items():
    if record['arrays'][name][2] != checksum:
      raise ValueError(f'checksum of {name} differs')


def check_shapes(record: dict, tree) -> None:
  """Raises Mismatch, naming a parameter, unless the checkpoint's parameters are those of the
  model."""
  saved = {name: x[:2] for name, x in record['arrays'].items() if name.startswith('params/')}
  wanted = {name: [list(x.shape), str(x.dtype)] for name, x in _named_leaves(tree)}
  for name in sorted(saved.keys() | wanted.keys()):
    if saved.get(name) != wanted.get(name):
      raise Mismatch(
        f'checkpoint and config.model differ in {name}: {saved.get(name)} was saved, '
        f'{wanted.get(name)} is configured; '
        'a fork keeps the shapes of the model, another model needs a new --workdir'
      )


def _named_leaves(tree) -> list[tuple[str, Any]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), x) for path, x in leaves]
