"""Attention with keys and values from a narrow latent, and CART's cross-attention to them."""

import flax.linen as nn
import jax.numpy as jnp

from crt_jax.layers.attention import Past, attend, entries_of, new_positions
from crt_jax.layers.linear import Dropout, Linear
from crt_jax.layers.rotary import rotate
from crt_jax.types import Array


class KeysValues(nn.Module):
  """Keys and values of x_BxTxC through a latent of width C // ratio; ratio 0 = full rank.

  No norm, no query compression and no separate rotary part (cart.md 2.3).
  """

  width: int
  heads: int
  head_width: int
  ratio: int = 4
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BxTxC: Array) -> tuple[Array, Array]:
    options = dict(bias=False, initializer='normal', dtype=self.dtype)
    in_width, in_axis = self.width, 'width'
    if self.ratio:
      in_width, in_axis = self.width // self.ratio, 'latent'
      down = Linear((in_width,), (self.width,), ('latent', 'width'), **options, name='down')
      x_BxTxC = down(x_BxTxC)
    axes = ('keys_values', 'heads', 'head_width', in_axis)
    up = Linear((2, self.heads, self.head_width), (in_width,), axes, **options, name='up')
    k, v = jnp.unstack(up(x_BxTxC), axis=2)
    return k, v


class LatentAttention(nn.Module):
  """Causal attention with its own keys and values (`kv`), or over given ones.

  With own keys both queries and keys are rotated; over given ones (CART's core) there is no
  positional signal, and query t sees positions 0..t.
  """

  width: int
  heads: int
  head_width: int
  kv: KeysValues | None
  rotary_theta: float = 1e4
  window: int = 0
  dropout: float = 0.0
  kernel: str = 'xla'
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, x_BxTxC: Array, past: Past | None = None, given: tuple[Array, Array] | None = None
  ) -> tuple[Array, dict | None]:
    """Returns y_BxTxC and, with `past` and own keys, the entries for the cache.

    Args:
      past: None or (cache, position_B); the cache belongs to whichever keys are used.
      given: (k, v), each [B, T, H, A], where the module has no keys of its own.
    """
    heads = (self.heads, self.head_width)
    options = dict(bias=False, initializer='normal', dtype=self.dtype)
    axes = ('heads', 'head_width', 'width')
    q = Linear(heads, (self.width,), axes, **options, name='q')(x_BxTxC)
    entries = None
    if self.kv is None:
      assert given is not None, 'a module without keys of its own is given them'
      k, v = given
    else:
      k, v = self.kv(x_BxTxC)
      position_BxT = new_positions(x_BxTxC.shape[1], past)
      q = rotate(q, position_BxT, 'standard', self.rotary_theta)
      k = rotate(k, position_BxT, 'standard', self.rotary_theta)
      entries = None if past is None else entries_of(k, v)
    dropout = Dropout(self.dropout) if self.dropout else None
    kernel = 'xla' if self.is_initializing() else self.kernel  # initialising must run on any device
    mixed_BxTxHxA = attend(q, k, v, past, self.window, dropout, kernel)
    axes = ('width', 'heads', 'head_width')
    out = Linear((self.width,), heads, axes, **options, name='out')
    y_BxTxC = out(mixed_BxTxHxA, padding=mixed_BxTxHxA.shape[-1] - self.head_width)
    return Dropout(self.dropout)(y_BxTxC), entries

  @property
  def cached_heads(self) -> int:
    """The number of key and value heads in a cache."""
    return self.heads
