"""The context-anchored recurrent transformer (cart.md).

A prelude encodes the text once, a shared core loops R times over its frozen keys and values, a coda
finishes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from crt_jax.layers.attention import entries_of
from crt_jax.layers.linear import Linear
from crt_jax.layers.norm import Norm
from crt_jax.layers.parameters import axes_of, init_params
from crt_jax.layers.transformer_layer import TransformerLayer
from crt_jax.models.base import Hidden, Model
from crt_jax.models.cart_loop import (
  Loop,
  history,
  is_cross,
  is_frozen,
  last_loop,
  loop_codes,
  make_loop,
  mixing_statistics,
)
from crt_jax.models.config import RecurrentPasses, pass_scan
from crt_jax.models.counts import of_cart, work_of_cart
from crt_jax.models.stack import (
  LayerStack,
  apply_module,
  cart_keys_values,
  cart_layer,
  empty_cache,
  first_layer,
  with_layer_axis,
)
from crt_jax.models.transformer import (
  axes_of_modules,
  embed,
  init_modules,
  output_modules,
  project,
)
from crt_jax.recurrence.depth_loop import depth_loop
from crt_jax.recurrence.state import DecodeState, advance
from crt_jax.schema import CARTConfig
from crt_jax.schema.fields import require

Array = jax.Array


class CARTParts(NamedTuple):
  """Pure pieces, closed over the parameters; each takes a dropout key or None."""

  embed: Callable
  prelude: Callable
  anchor: Callable
  core: Callable
  coda: Callable
  head: Callable


@dataclasses.dataclass(frozen=True)
class CART(Model):
  """The CART under the contract; depth is R."""

  Config = CARTConfig
  passes = RecurrentPasses('loops', 'R', 'loops')
  counts = staticmethod(of_cart)
  work = staticmethod(work_of_cart)
  config: CARTConfig

  # ---- modules -------------------------------------------------------------------------------

  def _prelude(self) -> LayerStack:
    return LayerStack(cart_layer(self.config), self.config.prelude_layers, self.config)

  def _core(self) -> TransformerLayer:
    return cart_layer(self.config, own_keys=not is_cross(self.config))

  def _core_example(self) -> tuple:
    config = self.config
    x_BxTxC = jnp.zeros((1, 1, config.width), config.param_dtype)
    if not is_cross(self.config):
      return (x_BxTxC,)
    k = jnp.zeros((1, 1, config.heads, config.head_width), config.param_dtype)
    return x_BxTxC, None, (k, k)

  def _modules(self) -> dict:
    """The single modules: embedding, final norm, coda, loop code and what the anchor needs."""
    config = self.config
    code = Linear(
      (config.width,),
      (config.loop_code_width,),
      ('width', 'loop_code'),
      bias=False,
      initializer='normal',
    )
    modules = output_modules(config, tied=True) | dict(coda=cart_layer(config))
    if is_cross(self.config):
      modules['anchor'] = cart_keys_values(config)
      if config.anchor_norm:
        modules['anchor_norm'] = Norm(config.width, 'rms', config.norm_eps)
    return modules | dict(loop_code=code)

  # ---- parameters ----------------------------------------------------------------------------

  def init(self, key):
    config = self.config
    prelude_key, core_key, code_key, key = jax.random.split(key, 4)
    modules = self._modules()
    code = modules.pop('loop_code')
    params = init_modules(modules, config, key)
    params['loop_code'] = init_params(code, code_key, self._codes(1), dtype=config.param_dtype)
    params['prelude'] = self._prelude().init(prelude_key)
    example = self._core_example()

    def init_core(key):
      return init_params(self._core(), key, *example, dtype=config.param_dtype)

    if config.share_core:
      params['core'] = init_core(core_key)
    else:
      params['core'] = jax.vmap(init_core)(jax.random.split(core_key, config.loops))
    params['blend'] = dict(weight=jnp.zeros(config.history, config.param_dtype).at[0].set(1))
    logit = math.log(config.gate_init / (1 - config.gate_init))
    params['gate'] = dict(logit=jnp.full(config.width, logit, config.param_dtype))
    return params

  def axes(self):
    modules = self._modules()
    code = modules.pop('loop_code')
    axes = axes_of_modules(modules, self.config)
    axes['loop_code'] = axes_of(code, self._codes(1))
    axes['prelude'] = self._prelude().axes()
    axes['core'] = axes_of(self._core(), *self._core_example())
    if not self.config.share_core:
      axes['core'] = jax.tree.map(lambda spec: PartitionSpec('loops', *spec), axes['core'])
    axes['blend'] = dict(weight=PartitionSpec('history'))
    axes['gate'] = dict(logit=PartitionSpec('width'))
    return axes

  def decayed(self):
    used = super().decayed()
    for part in ('blend', 'gate', 'loop_code'):
      if not getattr(self.config, part):
        used[part] = jax.tree.map(lambda _: False, used[part])
    return used

  # ---- passes --------------------------------------------------------------------------------

  def parts(self, params):
    modules = self._modules()

    def anchor(e_BxTxC, key=None):
      if self.config.anchor_norm:
        e_BxTxC = apply_module(modules['anchor_norm'], params['anchor_norm'], e_BxTxC)
      return apply_module(modules['anchor'], params['anchor'], e_BxTxC)

    def core(u_BxTxC, core_params=None, past=None, given=None, key=None):
      if given is not None:
        require(
          given[0].shape[1] == u_BxTxC.shape[1],
          f'given: an anchor of {given[0].shape[1]} positions does not fit u_BxTxC of '
          f'{u_BxTxC.shape[1]}; make it of the same tokens',
        )
      core_params = params['core'] if core_params is None else core_params
      extra = () if given is None else (given,)
      return apply_module(self._core(), core_params, u_BxTxC, past, *extra, key=key)

    return CARTParts(
      embed=lambda tokens, key=None: embed(modules, params, tokens),
      prelude=self._prelude().block(params['prelude']),
      anchor=anchor,
      core=core,
      coda=functools.partial(apply_module, modules['coda'], params['coda']),
      head=lambda hidden, key=None: self.head(params, hidden),
    )

  def hidden(self, params, tokens_BxT, depth=None, key=None, telemetry=False, probe_R=None):
    depth = self.resolve_depth(depth)
    probe_R = self._probe(depth, telemetry, probe_R)
    hidden_BxTxC, _, statistics = self._forward(params, tokens_BxT, None, depth, key, probe_R)
    if probe_R is not None:
      statistics = statistics | mixing_statistics(self.config, params)
    return Hidden(hidden_BxTxC, {}, statistics)

  def _forward(self, params, tokens_BxT, state: DecodeState | None, depth: int, key, probe_R=None):
    """hidden_BxTxC, the entries of every cache of `state`, and the statistics of the loops."""
    parts = self.parts(params)
    past = state.past if state is not None else lambda name: None
    prelude_key, core_key, coda_key = (None,) * 3 if key is None else jax.random.split(key, 3)
    e_BxTxC, prelude_entries = parts.prelude(parts.embed(tokens_BxT), past('prelude'), prelude_key)
    loop = self._loop(params, e_BxTxC, state, depth, core_key)
    (h_BxTxC, *_), core_entries, statistics = depth_loop(
      loop.step,
      e_BxTxC,
      depth,
      history(self.config),
      loop.per_loop,
      pass_scan(self.config),
      probe_R,
      self.config.backprop_loops,
    )
    h_BxTxC, coda_entries = parts.coda(h_BxTxC, first_layer(past('coda')), key=coda_key)
    if state is None:
      return h_BxTxC, {}, statistics
    entries = dict(prelude=prelude_entries, coda=with_layer_axis(coda_entries))
    if is_frozen(self.config):
      entries['anchor'] = with_layer_axis(entries_of(*loop.frozen))
    else:
      entries['core'] = core_entries
    return h_BxTxC, entries, statistics

  def _loop(self, params, e_BxTxC, state, depth: int, key) -> Loop:
    codes_RxC = self._modules()['loop_code'].apply(
      {'params': params['loop_code']}, self._codes(depth)
    )
    return make_loop(self.config, self.parts(params), params, codes_RxC, e_BxTxC, state, key)

  def recurrent_map(self, params, tokens_BxT, depth=None):
    parts = self.parts(params)
    e_BxTxC, _ = parts.prelude(parts.embed(tokens_BxT))
    loop = self._loop(params, e_BxTxC, None, self.resolve_depth(depth), None)
    return last_loop(self.config, loop, e_BxTxC)

  def _codes(self, depth: int) -> Array:
    return loop_codes(depth, self.config.loop_code_width, self.config.param_dtype)

  def head(self, params, hidden):
    return project(self._modules(), params, hidden, self.config)

  # ---- depth and decoding --------------------------------------------------------------------

  def resolve_depth(self, depth):
    depth = self.config.loops if depth is None else depth
    require(depth >= 1, f'depth={depth} must be at least 1 (R loops)')
    require(
      self.config.share_core or depth <= self.config.loops,
      f'depth={depth}: an unshared core has only model.loops={self.config.loops} blocks; '
      f'use depth={self.config.loops} or less, or model.share_core=True',
    )
    return depth

  def probes(self, depth=None):
    return self.resolve_depth(depth)

  def depths(self):
    return self.config.schedule.depths()

  def depth_at(self, seed, step):
    return self.config.schedule.draw(seed, step)

  def decode_state(self, batch, max_len, depth=None):
    config, depth = self.config, self.resolve_depth(depth)
    shape = (batch, max_len, config.heads, config.head_width, config.dtype)
    caches = dict(prelude=self._prelude().cache(batch, max_len), coda=empty_cache(1, *shape))
    if is_frozen(self.config):
      caches['anchor'] = empty_cache(1, *shape)
    else:
      caches['core'] = empty_cache(depth, *shape)
    return DecodeState(caches, None, jnp.zeros(batch, jnp.int32), depth)

  def advance(self, params, state, tokens_BxT, lengths_B, method):
    h_BxTxC, entries, _ = self._forward(params, tokens_BxT, state, state.depth, None)
    return advance(state, entries, None, lengths_B), h_BxTxC
