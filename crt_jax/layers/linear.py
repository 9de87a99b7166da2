"""Linear maps and embeddings, stored [out..., in...] so that decoding needs no second copy."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from crt_jax.layers.parameters import compute_dtype, normal, parameter, uniform_fan_in

Array = jax.Array


class Linear(nn.Module):
  """y = W x + b with W [*out_shape, *in_shape], contracted over the last len(in_shape) axes of x.

  Attributes:
    axes: logical names of all dimensions of W.
    initializer: 'uniform' = PyTorch's default for weight and bias, 'normal' = N(0, 0.02).
    dtype: what the product is computed in; the result has it too unless `out_dtype` is given.
  """

  out_shape: tuple[int, ...]
  in_shape: tuple[int, ...]
  axes: tuple[str, ...]
  bias: bool = True
  initializer: str = 'uniform'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array, out_dtype=None) -> Array:
    init = (
      uniform_fan_in(math.prod(self.in_shape)) if self.initializer == 'uniform' else normal(0.02)
    )
    weight = parameter(self, 'weight', init, self.out_shape + self.in_shape, self.axes)
    dtype = compute_dtype(self.dtype, weight.dtype)
    y = contract(x.astype(dtype), weight.astype(dtype), len(self.in_shape), out_dtype)
    if self.bias:
      bias = parameter(self, 'bias', init, self.out_shape, self.axes[: len(self.out_shape)])
      y = y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - bias.ndim))
    return y


def contract(x: Array, weight: Array, count: int, out_dtype=None) -> Array:
  """x [..., *in], weight [*out, *in] -> [..., *out]; contracts the last `count` axes of both."""
  contracting = (range(x.ndim - count, x.ndim), range(weight.ndim - count, weight.ndim))
  return jax.lax.dot_general(x, weight, (contracting, ((), ())), preferred_element_type=out_dtype)


class Embedding(nn.Module):
  """Token table [V, C]; returns e_BxTxC in the parameters' dtype (the residual stream's)."""

  vocab_size: int
  width: int
  stddev: float = 1.0

  @nn.compact
  def __call__(self, tokens_BxT: Array) -> Array:
    shape = (self.vocab_size, self.width)
    table_VxC = parameter(self, 'weight', normal(self.stddev), shape, ('vocab', 'width'))
    return jnp.take(table_VxC, tokens_BxT, axis=0)


class Dropout(nn.Module):
  """Zeroes a share `rate` and rescales the rest; the identity without a 'dropout' key."""

  rate: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    deterministic = not self.has_rng('dropout')
    return nn.Dropout(self.rate, deterministic=deterministic)(x)
