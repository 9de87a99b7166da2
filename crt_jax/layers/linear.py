"""Linear maps and embeddings, stored [out..., in...] so that decoding needs no second copy."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from crt_jax import sharding
from crt_jax.layers.attention_kernels import Dropped
from crt_jax.layers.parameters import compute_dtype, normal, parameter, uniform_fan_in
from crt_jax.types import Array

# Up to so many rows (batch * positions), a product on a CPU takes as long as reading its weight.
FEW_ROWS = 64


class Linear(nn.Module):
  """y = W x + b with W [*out_shape, *in_shape], contracted over the last len(in_shape) axes of x.

  Attributes:
    axes: logical names of all dimensions of W.
    initializer: 'uniform' = PyTorch's default for weight and bias, 'normal' = N(0, 0.02) and 0.
    dtype: what the product is computed in; the result has it too unless `out_dtype` is given.
  """

  out_shape: tuple[int, ...]
  in_shape: tuple[int, ...]
  axes: tuple[str, ...]
  bias: bool = True
  initializer: str = 'uniform'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array, out_dtype: DTypeLike | None = None, padding: int = 0) -> Array:
    """Returns y of x [..., *in_shape], whose last axis has so many zeros more as `padding`."""
    init, bias_init = normal(0.02), nn.initializers.zeros
    if self.initializer == 'uniform':
      init = bias_init = uniform_fan_in(math.prod(self.in_shape))
    weight = parameter(self, 'weight', init, self.out_shape + self.in_shape, self.axes)
    dtype = compute_dtype(self.dtype, weight.dtype)
    weight = weight.astype(dtype)
    if padding:
      weight = jnp.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, padding)])
    y = contract(x.astype(dtype), weight, len(self.in_shape), out_dtype)
    if self.bias:
      bias = parameter(self, 'bias', bias_init, self.out_shape, self.axes[: len(self.out_shape)])
      # Added in at least float32, in which its gradient is then summed.
      sum_dtype = jnp.promote_types(y.dtype, jnp.float32)
      bias = jnp.expand_dims(bias.astype(sum_dtype), range(y.ndim - bias.ndim))
      y = (y.astype(sum_dtype) + bias).astype(y.dtype)
    return y


def contract(x: Array, weight: Array, count: int, out_dtype: DTypeLike | None = None) -> Array:
  """Multiplies x [..., *in] by a weight [*out, *in] over the last `count` axes of both."""
  rows = math.prod(x.shape[: x.ndim - count])
  if rows <= FEW_ROWS and x.dtype in (jnp.float32, jnp.bfloat16):
    return _few_rows(count, out_dtype, x, weight)
  return _product(count, out_dtype, x, weight)


def _product(count: int, out_dtype: DTypeLike | None, x: Array, weight: Array) -> Array:
  # Gradients of a mean over a batch underflow in float16, to which `_tangent` would round them.
  is_wider = out_dtype not in (None, x.dtype) and x.dtype == jnp.bfloat16
  return (_wider_product if is_wider else _dot)(count, out_dtype, x, weight)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _wider_product(count: int, out_dtype: DTypeLike | None, x: Array, weight: Array) -> Array:
  return _dot(count, out_dtype, x, weight)


@_wider_product.defjvp
def _wider_product_jvp(
  count: int,
  out_dtype: DTypeLike | None,
  primals: tuple[Array, Array],
  tangents: tuple[Array, Array],
):
  return _dot(count, out_dtype, *primals), _tangent(count, out_dtype, primals, tangents)


def _tangent(
  count: int,
  out_dtype: DTypeLike | None,
  primals: tuple[Array, Array],
  tangents: tuple[Array, Array],
) -> Array:
  """Returns a product's tangent, computed in its factors' dtype, as its gradient then is.

  A gradient in a wider `out_dtype` would make both products of the backward pass wide: on a GPU
  those of 16 bits would run in TF32, at half the rate, over twice the bytes.
  """
  (x, weight), (dx, dweight) = primals, tangents
  dy = _dot(count, None, dx, weight) + _dot(count, None, x, dweight)
  return dy.astype(out_dtype or dy.dtype)


def _dot(count: int, out_dtype: DTypeLike | None, x: Array, weight: Array) -> Array:
  contracting = (range(x.ndim - count, x.ndim), range(weight.ndim - count, weight.ndim))
  return jax.lax.dot_general(x, weight, (contracting, ((), ())), preferred_element_type=out_dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _few_rows(count: int, out_dtype: DTypeLike | None, x: Array, weight: Array) -> Array:
  """Computes `_product`, on a CPU by `_stream_weight`, with the derivatives of `_product`."""
  return jax.lax.platform_dependent(
    x,
    weight,
    cpu=functools.partial(_stream_weight, count, out_dtype),
    default=functools.partial(_product, count, out_dtype),
  )


@_few_rows.defjvp
def _few_rows_jvp(
  count: int,
  out_dtype: DTypeLike | None,
  primals: tuple[Array, Array],
  tangents: tuple[Array, Array],
):
  return _few_rows(count, out_dtype, *primals), _tangent(count, out_dtype, primals, tangents)


def _stream_weight(count: int, out_dtype: DTypeLike | None, x: Array, weight: Array) -> Array:
  """Returns the product in a form for which XLA:CPU reads the weight once, as it is stored.

  Measured with jax 0.10.2 on 2 cores (AMD EPYC, busy), best of 12, weight [32000, 2048], GB/s:

    rows                        1     2     8
    dot_general, float32       30   7.1   5.5   (packs the weight anew at each call above one row)
    this, float32              30    32    22   (the weight must be the first factor)

  and weight [8192, 2048] in bfloat16 summed in float32: dot_general 1.1, 8.9, 7.7; this 8.6, 8.9,
  7.7. A weight of more than two dimensions, multiplied as it is, would be transposed first.
  """
  out_shape, in_shape = weight.shape[: weight.ndim - count], weight.shape[weight.ndim - count :]
  inputs = math.prod(in_shape)
  w_OxI = weight.reshape(-1, inputs)
  x_RxI = x.reshape(-1, inputs)
  is_single = x_RxI.shape[0] == 1
  if is_single == (x.dtype == jnp.float32):
    y_RxO = _product(1, jnp.float32, x_RxI, w_OxI)
  else:
    y_RxO = jnp.sum(w_OxI[None].astype(jnp.float32) * x_RxI[:, None].astype(jnp.float32), axis=-1)
  y_RxO = y_RxO.astype(out_dtype or x.dtype)
  return y_RxO.reshape(*x.shape[: x.ndim - count], *out_shape)


class Embedding(nn.Module):
  """Token table [V, C]; returns e_BxTxC in the parameters' dtype (the residual stream's).

  An id outside the table gives NaN: one below 0 too, which NumPy would count from the end.

  Attributes:
    max_positions: rows of a second table [P, C], of learned positions; 0 = none. A position past
      its end, which only padding may have, takes the last row.
  """

  vocab_size: int
  width: int
  stddev: float = 1.0
  max_positions: int = 0

  @nn.compact
  def __call__(self, tokens_BxT: Array, start_B: Array | None = None) -> Array:
    """Looks up the tokens; start_B is the first position of each row, or of all; None = 0."""
    shape = (self.vocab_size, self.width)
    table_VxC = parameter(self, 'weight', normal(self.stddev), shape, ('vocab', 'width'))
    e_BxTxC = jnp.asarray(table_VxC).at[tokens_BxT].get(mode='fill', wrap_negative_indices=False)
    if not self.max_positions:
      return e_BxTxC
    shape, axes = (self.max_positions, self.width), ('positions', 'width')
    table_PxC = parameter(self, 'positions', normal(0.01), shape, axes)
    start_B = jnp.zeros(1, jnp.int32) if start_B is None else start_B
    position_BxT = start_B[:, None] + jnp.arange(tokens_BxT.shape[1])[None]
    return e_BxTxC + jnp.asarray(table_PxC).at[position_BxT].get(mode='clip')


class Dropout(nn.Module):
  """Zeroes a share `rate` of x_B... and rescales the rest; the identity without a 'dropout' key.

  Each row of the batch draws from a key of its own, so its mask depends on no other row and no
  mesh.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if not self.rate or not self.has_rng('dropout'):
      return x
    key_B = sharding.row_keys(self.make_rng('dropout'), x.shape[0])
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(key_B)
    return _apart_on_tpu(jnp.where(_apart_on_tpu(keep), x / (1 - self.rate), 0))

  def of_kernel(self, rows: int, heads: int) -> Dropped | None:
    """Returns what a kernel draws masks from; None for none."""
    if not self.rate or not self.has_rng('dropout'):
      return None
    key_B = sharding.row_keys(self.make_rng('dropout'), rows)
    seed_BxH = jax.vmap(lambda key: jax.random.bits(key, (heads,), jnp.uint32))(key_B)
    return Dropped(self.rate, seed_BxH)


def _apart_on_tpu(x: Array) -> Array:
  """Returns `x` behind a barrier on TPUs, so that it is not fused into its use.

  The TPU compiler may crash when it fuses a mask and its use into a product (docs/LOG.md).
  """
  return jax.lax.platform_dependent(x, tpu=jax.lax.optimization_barrier, default=jnp.asarray)
