"""Causal multi-head attention over the new positions and a read-only cache of earlier ones."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from crt_jax.layers.attention_kernels import fused_attention
from crt_jax.layers.linear import Dropout, Linear
from crt_jax.layers.norm import Norm
from crt_jax.layers.rotary import Scaling, rotate
from crt_jax.rounding import ceil_div
from crt_jax.types import Array, Past

BLOCK, BLOCKS = 128, 4  # the fewest queries of a block, and the most blocks below 2,048 positions
LONG = 1024  # positions from which on the backward pass computes the weights anew
PIECE = 256  # queries of a longer block are then taken in turns, so that fewer scores exist at once


class Attention(nn.Module):
  """Self-attention of any pre-norm transformer here (crt.md 2.2, cart.md 2.3).

  Attributes:
    rotary, rotary_theta, scaling: of layers/rotary.py; '' turns nothing.
    kv_heads: key/value heads, G, each of which H / G query heads share; 0 = H.
    window: number of positions each position sees, itself included; 0 = all before it.
    bias, qkv_bias: whether all four projections have one, or the first three.
    qk_norm: an RMSNorm of each head's query and key, before they are turned.
    kernel: of layers/attention_kernels.py, where there is no `past` and it can drop weights.
  """

  width: int
  heads: int
  head_width: int
  rotary: str
  rotary_theta: float = 1e4
  scaling: Scaling | None = None
  kv_heads: int = 0
  window: int = 0
  bias: bool = True
  qkv_bias: bool = False
  qk_norm: bool = False
  norm_eps: float = 1e-6
  initializer: str = 'uniform'
  dropout: float = 0.0
  kernel: str = 'xla'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BxTxC: Array, past: Past | None = None) -> tuple[Array, dict | None]:
    """Returns y_BxTxC and, where `past` = (cache, position_B) was given, the entries to append.

    The cache holds rotated keys and values [B, H, S, A] of positions 0..S-1, or from a position on
    that is a third element of `past`; those from position_B on, or below 0, are not read. Entries
    are the same of the T new positions.
    """
    heads, head_width = self.heads, self.head_width
    options = dict(bias=self.bias, initializer=self.initializer, dtype=self.dtype)
    q, k, v = self._projected(x_BxTxC, options | dict(bias=self.bias or self.qkv_bias))
    if self.qk_norm:
      q, k = self._normed('q_norm', q), self._normed('k_norm', k)
    if self.rotary:
      position_BxT = new_positions(x_BxTxC.shape[1], past)
      q = rotate(q, position_BxT, self.rotary, self.rotary_theta, self.scaling)
      k = rotate(k, position_BxT, self.rotary, self.rotary_theta, self.scaling)
    dropout = Dropout(self.dropout) if self.dropout else None
    kernel = 'xla' if self.is_initializing() else self.kernel  # shapes are asked for anywhere
    mixed_BxTxHxA = attend(q, k, v, past, self.window, dropout, kernel)
    out = Linear(
      (self.width,), (heads, head_width), ('width', 'heads', 'head_width'), **options, name='out'
    )
    y_BxTxC = out(mixed_BxTxHxA, padding=mixed_BxTxHxA.shape[-1] - head_width)
    return Dropout(self.dropout)(y_BxTxC), None if past is None else entries_of(k, v)

  @property
  def cached_heads(self) -> int:
    """Heads of the keys and values that a cache holds."""
    return self.kv_heads or self.heads

  def _projected(self, x_BxTxC: Array, options: dict) -> tuple[Array, ...]:
    """Returns queries, keys and values: of one product where they have equally many heads."""
    heads, groups, head_width = self.heads, self.cached_heads, self.head_width
    inputs = (self.width,)
    if groups == heads:
      axes = ('qkv', 'heads', 'head_width', 'width')
      qkv = Linear((3, heads, head_width), inputs, axes, **options, name='qkv')
      return jnp.unstack(qkv(x_BxTxC), axis=2)
    axes = ('heads', 'head_width', 'width')
    q = Linear((heads, head_width), inputs, axes, **options, name='q')
    axes = ('keys_values', 'kv_heads', 'head_width', 'width')
    kv = Linear((2, groups, head_width), inputs, axes, **options, name='kv')
    return q(x_BxTxC), *jnp.unstack(kv(x_BxTxC), axis=2)

  def _normed(self, name: str, x_BxTxHxA: Array) -> Array:
    wide = x_BxTxHxA.astype(jnp.promote_types(x_BxTxHxA.dtype, jnp.float32))
    normed = Norm(self.head_width, 'rms', self.norm_eps, 'head_width', name=name)(wide)
    return normed.astype(x_BxTxHxA.dtype)


def entries_of(k_BxTxGxA: Array, v_BxTxGxA: Array) -> dict[str, Array]:
  """Returns keys and values as a cache takes them, [B, G, T, A], so a head reads one stretch.

  One position over a cache of 4,096 slots (16 heads of 68, 2 CPU cores) took 3.3 ms in this layout
  and 30 ms in [B, S, G, A], which XLA transposes at every step.
  """
  return dict(k=k_BxTxGxA.swapaxes(1, 2), v=v_BxTxGxA.swapaxes(1, 2))


def new_positions(length: int, past: Past | None) -> Array:
  """Returns absolute positions [B or 1, T] of the new tokens behind `past`."""
  start_B = jnp.zeros(1, jnp.int32) if past is None else past[1]
  return start_B[:, None] + jnp.arange(length)[None, :]


def attend(
  q_BxTxHxA: Array,
  k_BxTxGxA: Array,
  v_BxTxGxA: Array,
  past: Past | None,
  window: int,
  dropout: Dropout | None,
  kernel: str,
) -> Array:
  """Returns softmax attention of the new positions over the cache's valid slots and each other.

  H must be a multiple of G (grouped queries). Scores and softmax are at least float32. They are
  materialised, block by block, unless there is a `kernel` and nothing past, nor dropout where it
  drops none.

  Returns: mixed values [B, T, H, A] in the dtype of q; a fused kernel may leave zeros behind them.
  """
  if kernel != 'xla' and past is None and (dropout is None or kernel == 'triton'):
    dropped = None if dropout is None else dropout.of_kernel(*q_BxTxHxA.shape[::2])
    return fused_attention(kernel, q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, window, dropped)
  batch, length, heads, head_width = q_BxTxHxA.shape
  groups, shared = k_BxTxGxA.shape[2], heads // k_BxTxGxA.shape[2]
  # Query heads that share keys stand beside each other as further rows: [B, T * shared, G, A].
  q = (q_BxTxHxA * head_width**-0.5).reshape(batch, length, groups, shared, head_width)
  q = q.swapaxes(2, 3).reshape(batch, length * shared, groups, head_width)
  score_dtype = jnp.promote_types(q.dtype, jnp.float32)

  def masked(scores: Array, seen_BxTxS: Array):
    hidden = jnp.where(seen_BxTxS, 0, jnp.finfo(score_dtype).min / 2).astype(score_dtype)
    return scores + jnp.repeat(hidden, shared, axis=1)[:, None]

  def seen_behind(past: Past) -> Array:
    """Returns which of the cache's slots, and of the new positions after them, are seen."""
    cache, position_B, *first_B = past
    slots = cache['k'].shape[2]
    index = jnp.arange(slots + length)[None, None, :]
    start_Bx1x1 = position_B[:, None, None]
    first = first_B[0][:, None, None] if first_B else 0
    key_Bx1xS = jnp.where(index < slots, first + index, start_Bx1x1 + index - slots)
    is_there = (index >= slots) | ((key_Bx1xS >= 0) & (key_Bx1xS < start_Bx1x1))
    return is_there & within(new_positions(length, past)[:, :, None], key_Bx1xS, window)

  def scored(q_BxNxGxA: Array, start: int | Array, first: int, last: int):
    """Returns masked scores of the queries from position `start` on over keys first..last-1."""
    query = start + jnp.arange(q_BxNxGxA.shape[1] // shared)
    key = jnp.arange(first, last)
    scores = jnp.einsum(
      'btga,bsga->bgts',
      q_BxNxGxA,
      k_BxTxGxA[:, first:last],
      preferred_element_type=score_dtype,
    )
    return masked(scores, within(query[None, :, None], key[None, None, :], window))

  def weighted(scores: Array):
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return weights if dropout is None else dropout(weights)

  if past is None:

    def mix(q_BxNxGxA: Array, start: int | Array, first: int, last: int) -> Array:
      weights = weighted(scored(q_BxNxGxA, start, first, last))
      return jnp.einsum('bgts,bsga->btga', weights, v_BxTxGxA[:, first:last])

    piece = length
    if length >= LONG and dropout is None:
      mix, piece = jax.checkpoint(mix, static_argnums=(2, 3)), PIECE

    def mix_block(start: int, stop: int, first: int, last: int) -> Array:
      block = q[:, start * shared : stop * shared]
      if stop - start < 2 * piece:
        return mix(block, start, first, last)
      pieces = block.reshape(batch, -1, piece * shared, *block.shape[2:]).swapaxes(0, 1)
      starts = jnp.arange(start, stop, piece)
      mixed = jax.lax.map(lambda each: mix(each[0], each[1], first, last), (pieces, starts))
      return mixed.swapaxes(0, 1).reshape(block.shape)

    mixed = jnp.concatenate([mix_block(*block) for block in blocks(length, window)], axis=1)
  else:
    scores = products_with_past(q, past[0]['k'], k_BxTxGxA)
    weights = weighted(masked(scores, seen_behind(past)))
    mixed = jnp.einsum('bgts,bsga->btga', weights[..., -length:], v_BxTxGxA)
    v_BxGxSxA = with_layout_constraint(past[0]['v'], Layout((0, 1, 2, 3)))
    mixed = mixed + jnp.einsum('bgts,bgsa->btga', weights[..., :-length], v_BxGxSxA)
  mixed = mixed.reshape(batch, length, shared, groups, head_width).swapaxes(2, 3)
  return mixed.reshape(q_BxTxHxA.shape)


def products_with_past(q_BxNxGxA: Array, k_BxGxSxA: Array, new_BxTxGxA: Array) -> Array:
  """Returns queries times keys, of a cache and new ones, [B, G, N, S + T], in at least float32."""
  if q_BxNxGxA.shape[1] > 1:
    return products_apart(q_BxNxGxA, k_BxGxSxA, new_BxTxGxA)
  return jax.lax.platform_dependent(
    q_BxNxGxA, k_BxGxSxA, new_BxTxGxA, cuda=products_joined, default=products_apart
  )


def products_apart(q_BxNxGxA: Array, k_BxGxSxA: Array, new_BxTxGxA: Array) -> Array:
  """Returns `products_with_past` as two products."""
  product = _product_of(q_BxNxGxA)
  if q_BxNxGxA.shape[1] == 1 and q_BxNxGxA.dtype == jnp.float32:
    # Keys first: of a second factor XLA:CPU makes a transposed copy. It has no such bfloat16 dot.
    past = product('bgsa,btga->bgst', k_BxGxSxA, q_BxNxGxA).swapaxes(2, 3)
  else:
    past = product('btga,bgsa->bgts', q_BxNxGxA, k_BxGxSxA)
  return jnp.concatenate([past, product('btga,bsga->bgts', q_BxNxGxA, new_BxTxGxA)], axis=-1)


def products_joined(q_BxNxGxA: Array, k_BxGxSxA: Array, new_BxTxGxA: Array) -> Array:
  """Returns `products_with_past` as one product.

  For one query an NVIDIA GPU computes it by one kernel, which reads both; elsewhere the whole cache
  would be copied.
  """
  k_BxGxSxA = jnp.concatenate([k_BxGxSxA, new_BxTxGxA.swapaxes(1, 2)], axis=2)
  return _product_of(q_BxNxGxA)('btga,bgsa->bgts', q_BxNxGxA, k_BxGxSxA)


def _product_of(q: Array) -> Callable[..., Array]:
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  return functools.partial(jnp.einsum, preferred_element_type=dtype)


def blocks(length: int, window: int) -> list[tuple[int, int, int, int]]:
  """Stretches of queries and the keys that they see: (first query, end, first key, end).

  Scores that no query sees are then not computed: with 4 blocks 3/8 of all, with 8 blocks 7/16.
  Each block lengthens the compilation; measured in docs/performance.md, 6. Blocks of 2 PIECE
  queries or more are made of whole pieces.
  """
  count = max(1, min(BLOCKS, length // BLOCK), min(2 * BLOCKS, length // (2 * BLOCK)))
  size = ceil_div(length, count)
  if size >= 2 * PIECE:
    size = PIECE * round(size / PIECE)
  found, start = [], 0
  while start < length:
    stop = min(start + size, length)
    if stop - start >= 2 * PIECE:
      stop -= (stop - start) % PIECE
    first = max(0, start - window + 1) if window else 0
    found.append((start, stop, first, stop))
    start = stop
  return found


def within(query: Array, key: Array, window: int) -> Array:
  """Returns whether `query` sees `key`: causal, and at most `window` back if above 0."""
  causal = key <= query
  return causal & (query - key < window) if window else causal
