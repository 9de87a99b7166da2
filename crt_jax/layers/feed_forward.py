"""Position-wise feed-forward networks: exact GELU, its tanh form and SwiGLU."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from crt_jax.layers.linear import Dropout, Linear
from crt_jax.types import Array


class FeedForward(nn.Module):
  """in_width -> hidden -> width.

  Attributes:
    activation: 'gelu' (exact, crt.md 2.2), 'gelu_tanh' (GPT-2) or 'swiglu' (gate and up fused,
      cart.md 2.3).
    dropout_inside: dropout after the activation instead of at the end (CRT's concat correction).
  """

  width: int
  hidden: int
  in_width: int = 0
  activation: str = 'gelu'
  bias: bool = True
  initializer: str = 'uniform'
  dropout: float = 0.0
  dropout_inside: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    options = dict(bias=self.bias, initializer=self.initializer, dtype=self.dtype)
    in_shape = (self.in_width or self.width,)
    if self.activation == 'swiglu':
      axes = ('gate_up', 'feed_forward', 'width')
      y = Linear((2, self.hidden), in_shape, axes, **options, name='gate_up')(x)
      y = swiglu(*jnp.unstack(y, axis=-2))
    else:
      axes = ('feed_forward', 'width')
      y = Linear((self.hidden,), in_shape, axes, **options, name='up')(x)
      y = ACTIVATIONS[self.activation](y)
    if self.dropout_inside:
      y = Dropout(self.dropout)(y)
    down = Linear((self.width,), (self.hidden,), ('width', 'feed_forward'), **options, name='down')
    y = down(y)
    return y if self.dropout_inside else Dropout(self.dropout)(y)


def gelu(x: Array) -> Array:
  """Exact GELU; by erf, since the erfc of jax.nn.gelu makes a CPU step half as fast."""
  return _rounded_once(lambda x: x * 0.5 * (1 + jax.lax.erf(x * 0.5**0.5)), x)


def gelu_tanh(x: Array) -> Array:
  """GELU by tanh, as GPT-2 was trained with."""
  return _rounded_once(jax.nn.gelu, x)


ACTIVATIONS = {'gelu': gelu, 'gelu_tanh': gelu_tanh}


def swiglu(gate: Array, up: Array) -> Array:
  """silu(gate) * up."""
  return _rounded_once(lambda gate, up: jax.nn.silu(gate) * up, gate, up)


def _rounded_once(function: Callable, *inputs: Array) -> Array:
  """An elementwise function, of 16 bits in float32: then its inputs are all that is stored."""
  dtype = inputs[0].dtype
  if dtype.itemsize > 2:
    return function(*inputs)

  def wide(*inputs: Array) -> Array:
    return function(*(x.astype(jnp.float32) for x in inputs)).astype(dtype)

  return jax.checkpoint(wide, prevent_cse=False)(*inputs)
