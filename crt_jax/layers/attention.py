"""Causal multi-head attention over the new positions and a read-only cache of earlier ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from crt_jax.layers.attention_kernels import fused_attention
from crt_jax.layers.linear import Dropout, Linear
from crt_jax.layers.rotary import rotate

Array = jax.Array


class Attention(nn.Module):
  """Self-attention with rotary keys and queries (crt.md 2.2, cart.md 2.3).

  Attributes:
    window: number of positions each position sees, itself included; 0 = all before it.
    rotary: a kind of layers/rotary.py.
    kernel: of layers/attention_kernels.py, where there is neither dropout nor `past`.
  """

  width: int
  heads: int
  head_width: int
  rotary: str
  rotary_theta: float = 1e4
  window: int = 0
  bias: bool = True
  initializer: str = 'uniform'
  dropout: float = 0.0
  kernel: str = 'xla'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BxTxC: Array, past=None) -> tuple[Array, dict | None]:
    """Returns y_BxTxC and, where `past` = (cache, position_B) was given, the entries to append.

    The cache holds rotated keys and values [B, H, S, A] of positions 0..S-1, or from a position on
    that is a third element of `past`; those from position_B on, or below 0, are not read. Entries
    are the same of the T new positions.
    """
    heads, head_width = self.heads, self.head_width
    options = dict(bias=self.bias, initializer=self.initializer, dtype=self.dtype)
    axes = ('qkv', 'heads', 'head_width', 'width')
    qkv = Linear((3, heads, head_width), (self.width,), axes, **options, name='qkv')
    q, k, v = jnp.unstack(qkv(x_BxTxC), axis=2)
    position_BxT = new_positions(x_BxTxC.shape[1], past)
    q = rotate(q, position_BxT, self.rotary, self.rotary_theta)
    k = rotate(k, position_BxT, self.rotary, self.rotary_theta)
    dropout = Dropout(self.dropout) if self.dropout else None
    kernel = 'xla' if self.is_initializing() else self.kernel  # shapes are asked for anywhere
    mixed_BxTxHxA = attend(q, k, v, past, self.window, dropout, kernel)
    out = Linear(
      (self.width,), (heads, head_width), ('width', 'heads', 'head_width'), **options, name='out'
    )
    return Dropout(self.dropout)(out(mixed_BxTxHxA)), None if past is None else entries_of(k, v)


def entries_of(k_BxTxGxA: Array, v_BxTxGxA: Array) -> dict[str, Array]:
  """New keys and values as a cache takes them, [B, G, T, A]: each head reads one stretch of memory.

  One position over a cache of 4,096 slots (16 heads of 68, 2 CPU cores) took 3.3 ms in this layout
  and 30 ms in [B, S, G, A], which XLA transposes at every step.
  """
  return dict(k=k_BxTxGxA.swapaxes(1, 2), v=v_BxTxGxA.swapaxes(1, 2))


def new_positions(length: int, past) -> Array:
  """Absolute positions [B or 1, T] of the new tokens behind `past`."""
  start_B = jnp.zeros(1, jnp.int32) if past is None else past[1]
  return start_B[:, None] + jnp.arange(length)[None, :]


def attend(
  q_BxTxHxA: Array, k_BxTxGxA: Array, v_BxTxGxA: Array, past, window: int, dropout, kernel: str
) -> Array:
  """Softmax attention of the new positions over the cache's valid slots and each other.

  H must be a multiple of G (grouped queries). Scores and softmax are at least float32. They are
  materialised unless there is a `kernel`, no dropout, and nothing past.

  Returns: mixed values [B, T, H, A] in the dtype of q.
  """
  if kernel != 'xla' and past is None and dropout is None:
    return fused_attention(kernel, q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, window)
  batch, length, heads, head_width = q_BxTxHxA.shape
  groups, shared = k_BxTxGxA.shape[2], heads // k_BxTxGxA.shape[2]
  # Query heads that share keys stand beside each other as further rows: [B, T * shared, G, A].
  q = (q_BxTxHxA * head_width**-0.5).reshape(batch, length, groups, shared, head_width)
  q = q.swapaxes(2, 3).reshape(batch, length * shared, groups, head_width)
  score_dtype = jnp.promote_types(q.dtype, jnp.float32)

  def masked(scores, seen_BxTxS):
    hidden = jnp.where(seen_BxTxS, 0, jnp.finfo(score_dtype).min / 2).astype(score_dtype)
    return scores + jnp.repeat(hidden, shared, axis=1)[:, None]

  steps = jnp.arange(length)
  seen_1xTxT = within(steps[None, :, None], steps[None, None, :], window)
  scores = jnp.einsum('btga,bsga->bgts', q, k_BxTxGxA, preferred_element_type=score_dtype)
  weights = masked(scores, seen_1xTxT)
  if past is not None:
    cache, position_B, *first_B = past
    slot_Bx1xS = jnp.arange(cache['k'].shape[2])[None, None, :]
    if first_B:
      slot_Bx1xS = slot_Bx1xS + first_B[0][:, None, None]
    position_BxTx1 = new_positions(length, past)[:, :, None]
    seen_BxTxS = within(position_BxTx1, slot_Bx1xS, window)
    seen_BxTxS &= (slot_Bx1xS >= 0) & (slot_Bx1xS < position_B[:, None, None])
    if q.shape[1] == 1 and q.dtype == jnp.float32:
      # Keys first: of a second factor XLA:CPU makes a transposed copy. It has no such bfloat16 dot.
      scores = jnp.einsum('bgsa,btga->bgst', cache['k'], q).swapaxes(2, 3)
    else:
      scores = jnp.einsum('btga,bgsa->bgts', q, cache['k'], preferred_element_type=score_dtype)
    weights = jnp.concatenate([masked(scores, seen_BxTxS), weights], axis=-1)
  weights = jax.nn.softmax(weights, axis=-1).astype(q.dtype)
  if dropout is not None:
    weights = dropout(weights)
  mixed = jnp.einsum('bgts,bsga->btga', weights[..., -length:], v_BxTxGxA)
  if past is not None:
    mixed = mixed + jnp.einsum('bgts,bgsa->btga', weights[..., :-length], cache['v'])
  mixed = mixed.reshape(batch, length, shared, groups, head_width).swapaxes(2, 3)
  return mixed.reshape(q_BxTxHxA.shape)


def within(query: Array, key: Array, window: int) -> Array:
  """Whether position `query` sees position `key`: causal, and at most `window` back if above 0."""
  causal = key <= query
  return causal & (query - key < window) if window else causal
