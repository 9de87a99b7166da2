"""Cross-entropy over a large vocabulary without holding all logits at once."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from crt_jax import sharding
from crt_jax.rounding import ceil_div
from crt_jax.types import AnyArray, Array

MIB = 2**20
CHUNK_MIB = 64  # larger chunks gain nothing on a CPU


@jax.named_scope('cross_entropy')
def cross_entropy(
  head: Callable[[Array], Array],
  hidden_BxTxC: Array,
  targets_BxT: AnyArray,
  vocab_size: int,
  chunk_mib: int = CHUNK_MIB,
) -> tuple[Array, Array]:
  """Returns the mean cross-entropy, in nats, of the targets that count.

  The head runs over chunks of positions, each recomputed in the backward pass, so that the B*T*V
  logits are never in memory together.

  Args:
    head: hidden [..., C] -> logits [..., V].
    targets_BxT: token ids; below 0 does not count.
    chunk_mib: float32 logits that a device holds at a time.

  Returns: the mean over counted targets (0 if none counts) and their number.
  """
  batch, length = targets_BxT.shape
  chunk_bytes = chunk_mib * MIB * math.prod(sharding.shared_axes().values())
  wanted = ceil_div(batch * length * vocab_size * 4, chunk_bytes)
  chunk = ceil_div(length, min(wanted, length))
  count = ceil_div(length, chunk)
  pad = count * chunk - length
  hidden_BxTxC = jnp.pad(hidden_BxTxC, ((0, 0), (0, pad), (0, 0)))
  targets_BxT = jnp.pad(targets_BxT, ((0, 0), (0, pad)), constant_values=-1)

  def split(x: Array):
    return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

  def add_chunk(total: Array, chunk_input: tuple[Array, Array]):
    hidden_BxcxC, targets_Bxc = chunk_input
    return total + _summed(head(hidden_BxcxC), targets_Bxc), None

  counted = jnp.sum(targets_BxT >= 0)
  if count == 1:
    total = _summed(head(hidden_BxTxC), targets_BxT)
  else:
    dtype = jnp.promote_types(hidden_BxTxC.dtype, jnp.float32)
    zero = jnp.zeros_like(hidden_BxTxC, dtype, ())  # varies over devices as the sum does
    body = jax.checkpoint(add_chunk, prevent_cse=False)
    total, _ = jax.lax.scan(body, zero, (split(hidden_BxTxC), split(targets_BxT)))
  return total / jnp.maximum(counted, 1), counted


def _summed(logits: Array, targets: Array) -> Array:
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  picked = _pick(logits, jnp.maximum(targets, 0))
  return jnp.sum(jnp.where(targets >= 0, _log_normaliser(logits) - picked, 0))


@jax.custom_jvp
def _log_normaliser(logits: Array) -> Array:
  """Returns the logarithm of the sum of exp(logits) over the last axis."""
  largest, total = _largest_and_total(logits)
  return largest + jnp.log(total)


@_log_normaliser.defjvp
def _log_normaliser_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  largest, total = _largest_and_total(primals[0])
  weights = jnp.exp(primals[0] - largest[..., None])
  return largest + jnp.log(total), jnp.sum(weights * tangents[0], axis=-1) / total


def _largest_and_total(logits: Array) -> tuple[Array, Array]:
  """Returns the largest logit and the sum of exp(logit - largest); a GPU reads logits once."""
  return jax.lax.platform_dependent(logits, cuda=_in_one_pass, default=_in_two_passes)


def _in_two_passes(logits: Array) -> tuple[Array, Array]:
  largest = jnp.maximum(jnp.max(logits, axis=-1), jnp.finfo(logits.dtype).min)
  return largest, jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)


def _in_one_pass(logits: Array) -> tuple[Array, Array]:
  def joined(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    largest = jnp.maximum(a[0], b[0])
    return largest, a[1] * jnp.exp(a[0] - largest) + b[1] * jnp.exp(b[0] - largest)

  # The ones seem to depend on the logits: JAX derives no reduction that takes constants.
  ones = jnp.where(True, jnp.ones_like(logits), logits)
  # Finite, as -inf less itself would not be a number.
  start = (jnp.asarray(jnp.finfo(logits.dtype).min, logits.dtype), jnp.zeros((), logits.dtype))
  return jax.lax.reduce((logits, ones), start, joined, (logits.ndim - 1,))


@jax.custom_jvp
def _pick(logits: Array, targets: Array) -> Array:
  """Returns each target's logit, with a gradient that XLA fuses into the softmax's.

  That gradient is a comparison with the target; JAX's own is a scatter into all logits.
  """
  return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


@_pick.defjvp
def _pick_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
  logits, targets = primals
  token = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  tangent = jnp.sum(jnp.where(token == targets[..., None], tangents[0], 0), axis=-1)
  return _pick(logits, targets), tangent
