"""LayerNorm and RMSNorm with statistics in the residual stream's precision."""

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
    if self.kind == 'layer':
      x = x - jnp.mean(x, axis=-1, keepdims=True)
    y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
    y = y * jnp.expand_dims(scale, range(x.ndim - 1))
    if self.kind == 'layer':
      bias = parameter(self, 'bias', nn.initializers.zeros, (self.width,), (self.axis,))
      y = y + jnp.expand_dims(bias, range(x.ndim - 1))
    return y if x.shape == shape else y[0].reshape(shape)
