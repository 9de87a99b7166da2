"""Position-wise feed-forward networks: exact GELU, its tanh form and SwiGLU."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from crt_jax.layers.linear import Dropout, Linear
from crt_jax.types import Array


class FeedForward(nn.Module):
  """A feed-forward network: in_width -> hidden -> width.

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
      y = rounded_once(swiglu, y)
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
  """Computes the exact GELU by erf; jax.nn.gelu's erfc makes a CPU step twice as slow."""
  return rounded_once(lambda x: x * 0.5 * (1 + jax.lax.erf(x * 0.5**0.5)), x)


def gelu_tanh(x: Array) -> Array:
  """Computes GELU by tanh, which GPT-2 was trained with."""
  return rounded_once(jax.nn.gelu, x)


ACTIVATIONS = {'gelu': gelu, 'gelu_tanh': gelu_tanh}


@jax.custom_jvp
def swiglu(gate_up: Array) -> Array:
  """Computes silu(gate) * up of [..., 2, F].

  The gradient is of both at once: JAX's own pads those of gate and up and adds them, which moves
  half as many bytes again.
  """
  gate, up = jnp.unstack(gate_up, axis=-2)
  return jax.nn.silu(gate) * up


@swiglu.defjvp
def _swiglu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  # The reversed array pairs gate with up; XLA would compile a shared sigmoid to a separate kernel.
  gate_up, up_gate = primals[0], jnp.flip(primals[0], axis=-2)
  is_gate = jax.lax.broadcasted_iota(jnp.int32, gate_up.shape, gate_up.ndim - 2) == 0
  gate, up = jnp.where(is_gate, gate_up, up_gate), jnp.where(is_gate, up_gate, gate_up)
  share = jax.nn.sigmoid(gate)
  factor = share * jnp.where(is_gate, up * (1 + gate * (1 - share)), gate)
  return swiglu(gate_up), jnp.sum(factor * tangents[0], axis=-2)


def rounded_once(function: Callable, x: Array) -> Array:
  """Applies an activation; 16-bit inputs are computed in float32, and only the input is stored."""
  if x.dtype.itemsize > 2:
    return function(x)

  def wide(x: Array) -> Array:
    return function(x.astype(jnp.float32)).astype(x.dtype)

  return jax.checkpoint(wide, prevent_cse=False)(x)
