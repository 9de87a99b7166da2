"""What a model stacks: the interface `Stack`, and the layers that each style selects."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from crt_jax.layers.attention import Attention, Past
from crt_jax.layers.feed_forward import FeedForward
from crt_jax.layers.latent_attention import KeysValues, LatentAttention
from crt_jax.layers.norm import Norm
from crt_jax.layers.parameters import axes_of, init_params, stacked_axes
from crt_jax.layers.rotary import Scaling
from crt_jax.layers.transformer_layer import TransformerLayer
from crt_jax.models import decode_kernel
from crt_jax.models.config import layer_scan
from crt_jax.models.ends import gpt2_ends, llama_ends, tied_ends, untied_ends
from crt_jax.models.modules import apply_module
from crt_jax.recurrence.layer_loop import stack
from crt_jax.recurrence.state import Written
from crt_jax.rounding import round_up
from crt_jax.schema import CARTConfig, CRTConfig, LayerFields, ModelConfig, TransformerConfig
from crt_jax.types import Array, Tree


class Stack(abc.ABC):
  """What a CRT is built over: a causal map of vectors, and the caches it keeps for later positions.

  A stack is hashable and pure, as models are. `stacked` are the paths, the same in parameters and
  cache, of stacked layers that `block` also accepts as a tuple of one tree per layer; decoding
  reads that form fastest.
  """

  stacked: ClassVar[tuple[tuple[str, ...], ...]] = ()
  lends: ClassVar[bool] = False

  @abc.abstractmethod
  def init(self, key: Array) -> dict:
    """Returns new parameters: a nested dict of arrays."""

  @abc.abstractmethod
  def axes(self) -> dict:
    """Returns the tree of `init` with a PartitionSpec of logical axis names at each leaf."""

  @abc.abstractmethod
  def block(self, params: dict) -> Callable:
    """Returns the function (x_BxTxC, past, key) -> (z_BxTxC, entries), causal in each row.

    `past` is None for a sequence of which no cache is kept (entries are None then), or (cache,
    position_B, ...); entries are what T positions append to that cache, see recurrence/state.py.
    key=None means no dropout.
    """

  @abc.abstractmethod
  def cache(self, batch: int, max_len: int) -> Any:
    """Returns the caches before the first position: slots [N, B, H, S, A], and `Carry`."""

  def ends(self, config: ModelConfig) -> dict:
    """Returns the modules of models/ends.py that stand before and after the stack."""
    return untied_ends(config)

  def decayed(self) -> dict:
    """Returns the tree of `init` with False at parameters that `block` never reads."""
    return jax.tree.map(lambda spec: True, self.axes())

  def last_layer(self, params: dict) -> dict[str, tuple]:
    """Returns 'norm' and 'feed_forward' of the last layer, each as (module, parameters).

    Corrections share them; only a stack with `lends=True` has this method.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LayerStack(Stack):
  """`count` layers of one kind with separate weights, stacked along a leading axis.

  Attributes:
    layer: the linen module of a single layer.
    make_ends: what makes its `ends` of the configuration.
    has_head_layer: whether a transformer puts a feed-forward between it and the final norm.
  """

  stacked = ((),)
  lends = True
  layer: TransformerLayer
  count: int
  config: ModelConfig
  make_ends: Callable[[Any], dict] = untied_ends
  has_head_layer: bool = False

  def init(self, key: Array) -> dict:
    init_one = functools.partial(init_params, self.layer, dtype=self.config.param_dtype)
    return jax.vmap(lambda k: init_one(k, self._example()))(jax.random.split(key, self.count))

  def axes(self) -> dict:
    return stacked_axes(axes_of(self.layer, self._example()))

  def block(self, params_N: dict) -> Callable:
    """Returns the function that applies the layers in sequence (recurrence/layer_loop.py)."""
    return functools.partial(stack, self._apply, params_N, scan=layer_scan(self.config))

  def _apply(
    self, params: dict, x_BxTxC: Array, past: Past | None = None, key: Array | None = None
  ) -> tuple[Array, Any]:
    kernel = self.config.decode_kernel
    if past is None or not decode_kernel.is_single_row(kernel, x_BxTxC):
      return apply_module(self.layer, params, x_BxTxC, past, key=key)
    from crt_jax.layers import single_row

    is_slow = kernel == 'interpreted'
    x_BxTxC, cache = single_row.transformer_layer(self.layer, params, x_BxTxC, past, is_slow)
    return x_BxTxC, jax.tree.map(Written, cache)

  def ends(self, config: ModelConfig) -> dict:
    return self.make_ends(config)

  def cache(self, batch: int, max_len: int) -> dict[str, Array]:
    """Returns empty keys and values, [N, B, H, S, A] in the compute dtype."""
    attention = self.layer.attention
    return empty_cache(
      self.count, batch, max_len, attention.cached_heads, attention.head_width, self.config.dtype
    )

  def last_layer(self, params_N: Tree) -> dict[str, tuple]:
    layer, is_stacked = self.layer, isinstance(params_N, dict)
    last = jax.tree.map(lambda a: a[-1], params_N) if is_stacked else params_N[-1]
    norm = Norm(self.config.width, layer.norm, layer.norm_eps)
    return dict(norm=(norm, last['norm2']), feed_forward=(layer.feed_forward, last['feed_forward']))

  def _example(self) -> Array:
    return jnp.zeros((1, 1, self.config.width), self.config.param_dtype)


def empty_cache(
  layers: int, batch: int, max_len: int, heads: int, head_width: int, dtype: str
) -> dict[str, Array]:
  """Returns a cache of keys and values before the first position."""
  shape = (layers, batch, heads, max_len, head_width)
  return dict(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))


def first_layer(past: Past | None) -> Past | None:
  """Returns the `past` of a single layer, from a cache whose leading layer axis has length 1."""
  return None if past is None else (jax.tree.map(lambda a: a[0], past[0]), *past[1:])


def with_layer_axis(entries: Tree) -> Tree:
  """Returns a single layer's entries with the leading axis of a cache; None stays None."""
  return jax.tree.map(lambda a: a[None], entries)


def attention_of(config: LayerFields, **changes: Any) -> Attention:
  """Returns the attention of a configuration, by default the CRT paper's (crt.md 2.2, 2.3)."""
  return Attention(
    width=config.width,
    heads=config.heads,
    head_width=config.head_width,
    rotary=config.rotary,
    rotary_theta=config.rotary_theta,
    window=config.window,
    dropout=config.dropout,
    kernel=config.attention_kernel,
    dtype=config.dtype,
    **changes,
  )


def roformer_feed_forward(
  config: LayerFields, in_width: int = 0, dropout_inside: bool = False
) -> FeedForward:
  """Returns a feed-forward C -> 4C -> C with exact GELU and biases (crt.md 2.2)."""
  return FeedForward(
    width=config.width,
    hidden=4 * config.width,
    in_width=in_width,
    dropout=config.dropout,
    dropout_inside=dropout_inside,
    dtype=config.dtype,
  )


def roformer_stack(config: LayerFields, count: int) -> LayerStack:
  """Returns the layers of the CRT paper's models: LayerNorm, biased attention, GELU."""
  layer = TransformerLayer(attention_of(config), roformer_feed_forward(config))
  return LayerStack(layer, count, config)


def roformer_head_ffn_stack(config: TransformerConfig, count: int) -> LayerStack:
  """Returns those layers with one more feed-forward, the equal-capacity control (crt.md 9)."""
  return dataclasses.replace(roformer_stack(config, count), has_head_layer=True)


def cart_dense_stack(config: TransformerConfig, count: int) -> LayerStack:
  """Returns the layers of CART's dense baseline: RMSNorm, rotary attention, SwiGLU, no biases.

  With a `latent_ratio` they are the layers of a CART's prelude.
  """
  if config.latent_ratio:
    return LayerStack(cart_layer(config), count, config, tied_ends)
  attention = attention_of(config, bias=False, initializer='normal')
  layer = TransformerLayer(attention, cart_feed_forward(config), 'rms', config.norm_eps)
  return LayerStack(layer, count, config, tied_ends)


def llama_stack(config: LayerFields, count: int) -> LayerStack:
  """Returns the layers of Llama, Qwen2, Qwen3, SmolLM: RMSNorm, grouped key heads, SwiGLU.

  Qwen2 sets `qkv_bias`, Qwen3 `qk_norm`.
  """
  attention = attention_of(
    config,
    scaling=SCALINGS[config.rotary_scaling](config),
    kv_heads=config.kv_heads,
    bias=False,
    qkv_bias=config.qkv_bias,
    qk_norm=config.qk_norm,
    norm_eps=config.norm_eps,
    initializer='normal',
  )
  hidden = config.feed_forward_width or swiglu_width(config.width)
  layer = TransformerLayer(attention, swiglu_feed_forward(config, hidden), 'rms', config.norm_eps)
  return LayerStack(layer, count, config, llama_ends)


SCALINGS: dict[str, Callable[[LayerFields], Scaling | None]] = {
  'none': lambda config: None,
  'linear': lambda config: Scaling(config.rotary_factor),
  'llama3': lambda config: Scaling(
    config.rotary_factor, config.rotary_low, config.rotary_high, config.rotary_positions
  ),
}


def gpt2_stack(config: LayerFields, count: int) -> LayerStack:
  """Returns the layers of GPT-2: LayerNorm, biases, tanh GELU; positions are embedded."""
  attention = attention_of(config, initializer='normal')
  feed_forward = FeedForward(
    width=config.width,
    hidden=config.feed_forward_width or 4 * config.width,
    activation='gelu_tanh',
    initializer='normal',
    dropout=config.dropout,
    dtype=config.dtype,
  )
  return LayerStack(TransformerLayer(attention, feed_forward), count, config, gpt2_ends)


def cart_layer(config: CARTConfig | TransformerConfig, own_keys: bool = True) -> TransformerLayer:
  """Returns a layer of a CART; without `own_keys` (the core) it is given keys and values."""
  attention = LatentAttention(
    width=config.width,
    heads=config.heads,
    head_width=config.head_width,
    kv=cart_keys_values(config) if own_keys else None,
    rotary_theta=config.rotary_theta,
    window=config.window,
    dropout=config.dropout,
    kernel=config.attention_kernel,
    dtype=config.dtype,
  )
  return TransformerLayer(attention, cart_feed_forward(config), 'rms', config.norm_eps)


def cart_keys_values(config: CARTConfig | TransformerConfig) -> KeysValues:
  """Returns the projection to keys and values, for a layer or for the anchor."""
  return KeysValues(
    config.width, config.heads, config.head_width, config.latent_ratio, config.dtype
  )


def cart_feed_forward(config: CARTConfig | TransformerConfig) -> FeedForward:
  """Returns the SwiGLU feed-forward of a CART."""
  return swiglu_feed_forward(config, swiglu_width(config.width))


def swiglu_width(width: int) -> int:
  """Returns the smallest multiple of 256 that is at least 8C/3 (cart.md 2.1)."""
  return round_up(int(8 / 3 * width), 256)


def swiglu_feed_forward(config: ModelConfig, hidden: int) -> FeedForward:
  """Returns a SwiGLU feed-forward without biases."""
  return FeedForward(
    width=config.width,
    hidden=hidden,
    activation='swiglu',
    bias=False,
    initializer='normal',
    dropout=config.dropout,
    dtype=config.dtype,
  )


# model.style -> the function that makes its stack.
STYLES: dict[str, Callable[[Any, int], LayerStack]] = {
  'roformer': roformer_stack,
  'roformer_head_ffn': roformer_head_ffn_stack,
  'cart_dense': cart_dense_stack,
  'llama': llama_stack,
  'gpt2': gpt2_stack,
}


def layers_of(config: CRTConfig | TransformerConfig) -> LayerStack:
  """Returns the layers of a configuration in its style."""
  return STYLES[config.style](config, config.layers)
