"""One position of one row by few kernels (layers/row_kernels.py), as the linen modules have it.

Vectors between products are [C] in the residual stream's float32. Only decoding comes here.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from crt_jax.layers import row_kernels
from crt_jax.layers.attention import Attention
from crt_jax.layers.feed_forward import FeedForward
from crt_jax.layers.norm import Norm
from crt_jax.layers.rotary import rotate
from crt_jax.layers.transformer_layer import TransformerLayer
from crt_jax.types import Array, Past


def transformer_layer(
  layer: TransformerLayer, params: dict, x_1x1xC: Array, past: Past, interpret: bool
) -> tuple[Array, dict]:
  """Returns the layer's output, and as its entries the whole cache with the position in it."""
  norm, x_C = Norm(0, layer.norm, layer.norm_eps), x_1x1xC.reshape(-1)
  normed1, normed2 = (_normed(norm, params[name]) for name in ('norm1', 'norm2'))
  assert isinstance(layer.attention, Attention), 'decode_kernel.check refuses others'
  # The names that profiles know parts by.
  with jax.named_scope('TransformerLayer/attention'):
    x_C, cache = _attention(layer.attention, params['attention'], x_C, normed1, past, interpret)
  with jax.named_scope('TransformerLayer/feed_forward'):
    x_C = _feed_forward(layer.feed_forward, params['feed_forward'], x_C, normed2, x_C, interpret)
  return x_C.reshape(x_1x1xC.shape), cache


@jax.named_scope('FeedForward')
def feed_forward(
  modules: tuple[Norm, FeedForward],
  params: tuple[dict, dict],
  x: Array,
  onto: Array | None,
  interpret: bool,
) -> Array:
  """Returns onto + FeedForward(Norm(x)) of [..., C], all but whose last axis are 1."""
  (norm, module), (norm_params, own) = modules, params
  normed, onto_C = _normed(norm, norm_params), None if onto is None else onto.reshape(-1)
  y_C = _feed_forward(module, own, x.reshape(-1), normed, onto_C, interpret)
  return y_C.reshape(*x.shape[:-1], -1)


@jax.named_scope('Linear')
def head(
  norm: Norm, norm_params: dict, output: dict, hidden: Array, dtype: DTypeLike, interpret: bool
) -> Array:
  """Returns logits [..., V] of hidden [..., C]; `output` has a weight and, if any, a bias."""
  normed = _normed(norm, norm_params)
  logits_V = _product(hidden.reshape(-1), output, dtype, 1, normed=normed, interpret=interpret)
  return logits_V.reshape(*hidden.shape[:-1], -1)


def _attention(
  module: Attention,
  params: dict,
  x_C: Array,
  normed: row_kernels.Normed,
  past: Past,
  interpret: bool,
) -> tuple[Array, dict]:
  """Returns x + Attention(Norm(x)), and the cache."""
  cache, position_1 = past
  k_HxSxA, v_HxSxA = cache['k'][0], cache['v'][0]
  dtype, heads, width = jnp.dtype(module.dtype), module.heads, module.head_width
  product = functools.partial(_product, dtype=dtype, interpret=interpret)
  qkv = product(x_C, params['qkv'], normed=normed, out_dtype=dtype)
  turn_2xA = _turn(module, position_1) if module.rotary else None
  mixed_HxA, k_HxSxA, v_HxSxA = row_kernels.attention(
    qkv.reshape(3, heads, width),
    turn_2xA,
    functools.partial(_partner, width, module.rotary),
    k_HxSxA,
    v_HxSxA,
    position_1,
    module.window,
    interpret,
  )
  x_C = product(mixed_HxA.reshape(-1), params['out'], onto_O=x_C)
  return x_C, dict(k=k_HxSxA[None], v=v_HxSxA[None])


def _turn(module: Attention, position_1: Array) -> Array:
  """Cosines and signed sines [2, A]: `rotate` is x cos + x[partner] sin."""
  index_A = jnp.arange(module.head_width)
  is_first_A = index_A < _partner(module.head_width, module.rotary, index_A)
  first_A, second_A = (
    rotate(
      one_A.astype(jnp.float32)[None, None, None],
      position_1[:, None],
      module.rotary,
      module.rotary_theta,
      module.scaling,
    ).reshape(-1)
    for one_A in (is_first_A, ~is_first_A)
  )
  return jnp.where(is_first_A, jnp.stack([first_A, second_A]), jnp.stack([second_A, first_A]))


def _partner(width: int, rotary: str, index: Array) -> Array:
  """Returns the entry of a head with which another one turns (layers/rotary.py)."""
  if rotary == 'standard':
    return (index + width // 2) % width
  return index ^ 1


def _feed_forward(
  module: FeedForward,
  params: dict,
  x_K: Array,
  normed: row_kernels.Normed,
  onto_C: Array | None,
  interpret: bool,
) -> Array:
  is_pair = module.activation == 'swiglu'
  product = functools.partial(_product, dtype=jnp.dtype(module.dtype), interpret=interpret)
  up = params['gate_up' if is_pair else 'up']
  hidden_F = product(
    x_K,
    up,
    parts=2 if is_pair else 1,
    normed=normed,
    activation=module.activation,
    out_dtype=module.dtype,
  )
  return product(hidden_F, params['down'], onto_O=onto_C)


def _product(x_K: Array, linear: dict, dtype: DTypeLike, parts: int = 1, **options: Any) -> Array:
  """Returns `row_kernels.product` by the weight and bias of a Linear, [parts, O] of its outputs."""
  weight = linear['weight'].astype(dtype).reshape(parts, -1, x_K.size)
  bias = linear['bias'].reshape(parts, -1) if 'bias' in linear else None
  return row_kernels.product(x_K, weight, bias, **options)


def _normed(norm: Norm, params: dict) -> row_kernels.Normed:
  return row_kernels.Normed(params['scale'], params.get('bias'), norm.eps)
