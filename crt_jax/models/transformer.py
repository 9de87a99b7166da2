"""The transformers that CRT and CART are compared with.

Styles: 'roformer' is the CRT paper's baseline (crt.md 2), 'roformer_head_ffn' the same with a
feed-forward before the final norm (its equal-capacity control, crt.md 9), 'cart_dense' CART's dense
baseline (cart.md 2.7); 'llama' and 'gpt2' are those of published weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crt_jax.layers.norm import Norm
from crt_jax.models import decode_kernel
from crt_jax.models.base import Hidden, Model
from crt_jax.models.counts import of_transformer
from crt_jax.models.ends import embed, project
from crt_jax.models.layer_stacks import LayerStack, layers_of, roformer_feed_forward
from crt_jax.models.modules import axes_of_modules, init_modules, normed_feed_forward
from crt_jax.recurrence.state import DecodeState, advance
from crt_jax.schema import TransformerConfig
from crt_jax.types import AnyArray, Array, Params, Past


class TransformerParts(NamedTuple):
  """Component functions, closed over the parameters; each takes a dropout key or None."""

  embed: Callable
  block: Callable
  head: Callable


@dataclasses.dataclass(frozen=True)
class Transformer(Model[TransformerConfig]):
  """A stack of layers; it has no recurrence, so depth is always None."""

  Config = TransformerConfig
  counts = staticmethod(of_transformer)

  @property
  def stacked(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
    return {('layers',): ('block',)}

  def _modules(self) -> dict:
    return self._stack().ends(self.config)

  def _stack(self) -> LayerStack:
    return layers_of(self.config)

  def _head_layer(self) -> dict:
    if not self._stack().has_head_layer:
      return {}
    return dict(
      head_norm=Norm(self.config.width), head_feed_forward=roformer_feed_forward(self.config)
    )

  def init(self, key: Array) -> Params:
    stack_key, key = jax.random.split(key)
    modules = self._modules() | self._head_layer()
    return dict(layers=self._stack().init(stack_key), **init_modules(modules, self.config, key))

  def axes(self) -> dict:
    modules = self._modules() | self._head_layer()
    return dict(layers=self._stack().axes(), **axes_of_modules(modules, self.config))

  def parts(self, params: Params) -> TransformerParts:
    return TransformerParts(
      embed=lambda tokens, key=None: embed(self._modules(), params, tokens),
      block=functools.partial(self._block, params),
      head=lambda hidden, key=None: self.head(params, hidden),
    )

  def _block(
    self, params: Params, x_BxTxC: Array, past: Past | None = None, key: Array | None = None
  ) -> tuple[Array, Any]:
    stack_key, head_key = (None, None) if key is None else jax.random.split(key)
    config = decode_kernel.config_for(self.config, params)
    stack = layers_of(config)
    x_BxTxC, entries = stack.block(params['layers'])(x_BxTxC, past, stack_key)
    extra = self._head_layer()
    if extra:
      modules, own = ((of['head_norm'], of['head_feed_forward']) for of in (extra, params))
      x_BxTxC = normed_feed_forward(modules, own, x_BxTxC, x_BxTxC, head_key, config.decode_kernel)
    return x_BxTxC, entries

  @property
  def max_positions(self) -> int:
    return self._modules()['embedding'].max_positions

  def hidden(
    self,
    params: Params,
    tokens_BxT: AnyArray,
    depth: int | None = None,
    key: Array | None = None,
    telemetry: bool = False,
    probe_R: Array | None = None,
  ) -> Hidden:
    self.resolve_depth(depth)
    if telemetry or probe_R is not None:
      self.check_telemetry()
    x_BxTxC = embed(self._modules(), params, tokens_BxT)
    return Hidden(self._block(params, x_BxTxC, None, key)[0], {}, {})

  def head(self, params: Params, hidden: Array) -> Array:
    config = decode_kernel.config_for(self.config, params)
    return project(self._modules(), params, hidden, config)

  def decode_state(self, batch: int, max_len: int, depth: int | None = None) -> DecodeState:
    self.resolve_depth(depth)
    caches = dict(block=self._stack().cache(batch, max_len))
    return DecodeState(caches, None, jnp.zeros(batch, jnp.int32))

  def advance(
    self,
    params: Params,
    state: DecodeState,
    tokens_BxT: AnyArray,
    lengths_B: Array | None,
    method: str,
  ) -> tuple[DecodeState, Array]:
    x_BxTxC = embed(self._modules(), params, tokens_BxT, state.position_B)
    x_BxTxC, entries = self._block(params, x_BxTxC, state.past('block'), None)
    return advance(state, dict(block=entries), None, lengths_B), x_BxTxC
