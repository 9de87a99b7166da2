"""A stack of layers with separate weights: one scan, so compile time does not grow with depth.

Decoding on prepared parameters is the exception (decoding/prepare.py): there every layer has arrays
of its own, and the loop over layers is written out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crt_jax.types import Array, Past, Tree


def stack(
  layer: Callable,
  params_N: Tree,
  x_BxTxC: Array,
  past: Past | None = None,
  key: Array | None = None,
  scan: Callable = jax.lax.scan,
) -> tuple[Array, Any]:
  """Applies N layers in sequence.

  Args:
    layer: params, x_BxTxC, past, key=... -> x_BxTxC, entries (None without past).
    params_N: the layers' parameters, stacked along a leading axis N or as a tuple of N trees.
    past: None, or (cache, position_B); the cache has leaves [N, B, ...], or is a tuple of N trees
      with leaves [1, B, ...] where the parameters are one.
    key: dropout key, or None for none; layer n uses fold_in(key, n).
    scan: runs the layers where their parameters are stacked, see scan.py.

  Returns: the last layer's output and the entries of all layers, in the form of the cache.
  """

  def one(x_BxTxC: Array, per_layer: tuple):
    params, cache, index = per_layer
    layer_key = None if key is None else jax.random.fold_in(key, index)
    past_n = None if past is None else (cache, *past[1:])
    return layer(params, x_BxTxC, past_n, key=layer_key)

  cache_N = None if past is None else past[0]
  if isinstance(params_N, tuple):
    return _separate(one, params_N, x_BxTxC, cache_N)
  count = jax.tree.leaves(params_N)[0].shape[0]
  return scan(one, x_BxTxC, (params_N, cache_N, jnp.arange(count)))


def _separate(one: Callable, params_N: tuple, x_BxTxC: Array, cache_N: tuple | None):
  """Applies the layers in a written-out loop; a scan would copy each layer's weights and cache."""
  entries_N = []
  for index, params in enumerate(params_N):
    cache = None if cache_N is None else jax.tree.map(lambda a: a[0], cache_N[index])
    x_BxTxC, entries = one(x_BxTxC, (params, cache, index))
    entries_N.append(jax.tree.map(lambda a: a[None], entries))
  return x_BxTxC, None if cache_N is None else tuple(entries_N)
