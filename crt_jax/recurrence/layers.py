"""A stack of layers with separate weights: one scan, so compile time does not grow with depth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def stack(
  layer: Callable, params_N: dict, x_BxTxC: Array, past, key: Array | None, remat: bool = False
) -> tuple[Array, dict | None]:
  """Applies N layers in sequence.

  Args:
    layer: params, x_BxTxC, past, key -> x_BxTxC, entries (None without past).
    params_N: the layers' parameters, stacked along a leading axis N.
    past: None, or what `DecodeState.past` gives; the cache has leaves [N, B, ...].
    key: dropout key, or None for none; layer n uses fold_in(key, n).
    remat: recompute each layer in the backward pass instead of storing what it computed.

  Returns: the last layer's output and the entries of all layers, [N, B, T, ...].
  """

  def one(x_BxTxC, per_layer):
    params, cache, index = per_layer
    layer_key = None if key is None else jax.random.fold_in(key, index)
    return layer(params, x_BxTxC, None if past is None else (cache, *past[1:]), layer_key)

  count = jax.tree.leaves(params_N)[0].shape[0]
  cache_N = None if past is None else past[0]
  body = jax.checkpoint(one, prevent_cse=False) if remat else one
  return jax.lax.scan(body, x_BxTxC, (params_N, cache_N, jnp.arange(count)))
