"""One loop of a CART: blend of states, loop code, core and gate (cart.md 2.4 to 2.7).

`make_loop` gives the step that recurrence/depth_loop.py repeats; `last_loop` gives the last loop as
a map from its state to the next state, for Jacobians.
"""

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from crt_jax.layers.attention import entries_of
from crt_jax.models.layer_stacks import first_layer
from crt_jax.recurrence.depth_loop import depth_loop
from crt_jax.schema import CARTConfig
from crt_jax.types import Array, Past

if TYPE_CHECKING:
  from crt_jax.models.cart_block import BlockParts


class Loop(NamedTuple):
  """The step that recurrence/depth_loop.py repeats, and its inputs.

  Attributes:
    step: ring (newest first), r, this loop's slice of per_loop -> h_BxTxC, cache entries or None.
    per_loop: arrays with a leading axis of length R.
    frozen: keys and values of the anchor, the same in all loops; None where there are none.
  """

  step: Callable
  per_loop: tuple
  frozen: tuple[Array, Array] | None


def is_cross(config: CARTConfig) -> bool:
  """Returns whether the core attends to an anchor instead of to its own keys and values."""
  return config.core == 'cross'


def is_frozen(config: CARTConfig) -> bool:
  """Returns whether the core attends to an anchor that is the same in all loops."""
  return is_cross(config) and config.anchor == 'frozen'


def history(config: CARTConfig) -> int:
  """Returns how many earlier states a loop reads."""
  return config.history if config.blend else 1


def make_loop(
  config: CARTConfig,
  parts: 'BlockParts',
  params: dict,
  codes_RxC: Array,
  e_BxTxC: Array,
  past: Past | None,
  key: Array | None,
) -> Loop:
  """Returns the loop over the prelude's output.

  Args:
    parts: BlockParts of the same parameters.
    codes_RxC: the projected code of each loop; their number is R.
    past: caches of earlier positions by name, and where these stand; or None.
    key: dropout key, or None; loop r uses fold_in(key, r).
  """
  frozen = parts.anchor(e_BxTxC) if is_frozen(config) else None
  blend_weights = jax.nn.softmax(params['blend']['weight'])
  gain_C = jax.nn.sigmoid(params['gate']['logit'])[None, None]

  @jax.named_scope('core_loop')
  def step(ring: tuple[Array, ...], r: Array, per_loop: tuple):
    code_C, core_params, cache = per_loop
    loop_key = None if key is None else jax.random.fold_in(key, r)
    u_BxTxC = ring[0]
    if config.blend:
      terms = [blend_weights[i] * h_BxTxC for i, h_BxTxC in enumerate(ring)]
      u_BxTxC = functools.reduce(operator.add, terms)
    if config.loop_code:
      u_BxTxC = u_BxTxC + code_C[None, None].astype(u_BxTxC.dtype)
    given = parts.anchor(u_BxTxC) if config.anchor == 'per_loop' else frozen
    if is_frozen(config):
      loop_past = first_layer(of_cache(past, 'anchor'))
    else:
      loop_past = None if past is None else (cache, *past[1:])
    o_BxTxC, entries = parts.core(u_BxTxC, core_params, loop_past, given, loop_key)
    if config.anchor == 'per_loop' and given is not None and past is not None:
      entries = entries_of(*given)
    if config.core_residual:
      o_BxTxC = (gain_C * u_BxTxC if config.gate else u_BxTxC) + o_BxTxC
    return o_BxTxC, entries

  core_params, core_past = None, of_cache(past, 'core')
  if not config.share_core:
    core_params = jax.tree.map(lambda a: a[: codes_RxC.shape[0]], params['core'])
  return Loop(step, (codes_RxC, core_params, core_past and core_past[0]), frozen)


def of_cache(past: Past | None, name: str) -> Past | None:
  """Returns the `past` of one of several caches; None if that cache does not exist."""
  return None if past is None or name not in past[0] else (past[0][name], *past[1:])


def last_loop(config: CARTConfig, loop: Loop, e_BxTxC: Array) -> tuple:
  """Returns the last loop as a map of the ring of states, the ring before it, and state axes.

  With a frozen anchor a position depends on no state but its own.
  """
  depth = loop.per_loop[0].shape[0]
  before, last = (jax.tree.map(lambda a, i=i: a[i], loop.per_loop) for i in (slice(-1), -1))
  ring, _, _ = depth_loop(loop.step, e_BxTxC, depth - 1, history(config), before)

  def ring_map(ring: tuple[Array, ...]):
    return (loop.step(ring, depth - 1, last)[0], *ring[:-1])

  return ring_map, ring, (-1,) if is_frozen(config) else None


def loop_codes(depth: int, width: int, dtype: DTypeLike) -> Array:
  """Returns the sinusoidal codes of loops 0..depth-1, [R, width], for any R (cart.md 2.6)."""
  angle = np.arange(depth)[:, None] * 1e4 ** (-2 * np.arange(width // 2) / width)
  codes = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(depth, width)
  return jnp.asarray(codes, dtype)  # a constant of the program, which no token computes


def mixing_statistics(config: CARTConfig, params: dict) -> dict[str, Array]:
  """Returns statistics of the trained gate and blend.

  `gate_histogram` counts channels in 20 bins over [0, 1].
  """
  gate_C = jax.nn.sigmoid(params['gate']['logit'])
  found = {}
  if config.gate:
    histogram, _ = jnp.histogram(gate_C, bins=20, range=(0, 1))
    found |= dict(gate_max=gate_C.max(), gate_mean=gate_C.mean(), gate_min=gate_C.min())
    found |= dict(gate_histogram=histogram)
  if config.blend:
    found |= dict(blend=jax.nn.softmax(params['blend']['weight']))
  return found
