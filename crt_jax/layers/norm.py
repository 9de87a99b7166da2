"""LayerNorm and RMSNorm with statistics in the residual stream's precision."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from crt_jax.layers.parameters import parameter
from crt_jax.types import Array


class Norm(nn.Module):
  """Normalises the last axis; kind 'layer' (centred, gain and bias) or 'rms' (gain only).

  The input must be the residual stream (float32, or float64), in which everything is computed.

  Attributes:
    axis: logical name of the axis.
  """

  width: int
  kind: str = 'layer'
  eps: float = 1e-5
  axis: str = 'width'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = parameter(self, 'scale', nn.initializers.ones, (self.width,), (self.axis,))
    shape = x.shape
    if x.size == self.width:
      # XLA compiles a single row to several GPU kernels, but the first of two rows to one or none.
      is_first = jax.lax.broadcasted_iota(jnp.int32, (2, self.width), 0) == 0
      x = jnp.where(is_first, x.reshape(1, self.width), 0)
    y = standardised(x, self.eps) if self.kind == 'layer' else _scaled(x, self.eps)
    y = y * jnp.expand_dims(scale, range(x.ndim - 1))
    if self.kind == 'layer':
      bias = parameter(self, 'bias', nn.initializers.zeros, (self.width,), (self.axis,))
      y = y + jnp.expand_dims(bias, range(x.ndim - 1))
    return y if x.shape == shape else y[0].reshape(shape)


def _scaled(x: Array, eps: float) -> Array:
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardised(x: Array, eps: float) -> Array:
  """Returns x with mean 0 and variance 1 along the last axis.

  Where derivatives are taken, a GPU computes mean and variance first, and everything else reads
  them: XLA would compute them anew in each kernel, of which some then write what others sum up.
  """
  return _scaled(x - jnp.mean(x, axis=-1, keepdims=True), eps)


@standardised.defjvp
def _standardised_jvp(
  eps: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
  (x,), (dx,) = primals, tangents
  mean, variance = jax.lax.platform_dependent(x, cuda=_in_one_pass, default=_in_two_passes)
  factor = jax.lax.rsqrt(variance + eps)
  y = (x - mean) * factor
  mean_dx, mean_ydx = (jnp.mean(a, axis=-1, keepdims=True) for a in (dx, y * dx))
  return y, factor * (dx - mean_dx - y * mean_ydx)


def _in_two_passes(x: Array) -> tuple[Array, Array]:
  mean = jnp.mean(x, axis=-1, keepdims=True)
  return mean, jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)


def _in_one_pass(x: Array) -> tuple[Array, Array]:
  """Returns mean and variance by joining those of parts, which cancels no digits."""

  def joined(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    """Joins means, sums of squared deviations and counts of two parts."""
    count, change = a[2] + b[2], b[0] - a[0]
    share = b[2] / jnp.maximum(count, 1)
    return a[0] + change * share, a[1] + b[1] + change * change * a[2] * share, count

  zero = jnp.zeros((), x.dtype)
  # They seem to depend on x: JAX derives no reduction that takes constants.
  zeros, ones = (jnp.where(True, constant(x), x) for constant in (jnp.zeros_like, jnp.ones_like))
  mean, squares, count = jax.lax.reduce((x, zeros, ones), (zero,) * 3, joined, (x.ndim - 1,))
  # Without the barrier XLA fuses them into what reads them.
  return jax.lax.optimization_barrier((mean[..., None], (squares / count)[..., None]))
