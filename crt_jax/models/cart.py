"""The context-anchored recurrent transformer (cart.md).

A prelude encodes the text once, a shared core loops R times over its frozen keys and values, a coda
finishes.
"""

import dataclasses
import functools
import math
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
from crt_jax.models.config import ModelConfig, RecurrentPasses, one_of, require
from crt_jax.models.counts import of_cart, work_of_cart
from crt_jax.models.depth_schedule import DepthSchedule
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
  require_latent_ratio,
)
from crt_jax.recurrence.depth_loop import depth_loop
from crt_jax.recurrence.state import DecodeState, advance

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class CARTConfig(ModelConfig):
  """Fields of a CART; the booleans and choices are the switches of cart.md 4.

  Attributes:
    head_width: 64 as published; width must be a multiple of it.
    prelude_layers: P, at least 2 as published, or fewer with `short_prelude`.
    short_prelude: whether P may be 0 or 1.
    loops: R.
    loops_min: above 0, training draws R uniformly from [loops_min, loops] at each step.
    backprop_loops: gradients flow through the last so many loops only; 0 = all.
    latent_ratio: keys and values pass through width // latent_ratio; 0 = full rank.
    history: states that the blend mixes.
    gate_init: initial sigmoid(a) of every channel, in (0, 1).
    loop_code_width: sinusoidal code of the loop index, even.
    anchor: source of the core's keys and values: 'frozen' (the prelude's output) or 'per_loop'
      (each loop's input).
    anchor_norm: RMSNorm before the anchor's projection.
    share_core: one core for all loops; otherwise `loops` of them.
    core: 'cross' (attends to the anchor) or 'self' (a prelude-type layer; no anchor).
    core_residual: whether A * u is added around the core; off: h = core(u), needs `gate` off.
    blend, gate, loop_code: the three small parts, each can be switched off.
  """

  head_width: int = 0
  prelude_layers: int = 4
  short_prelude: bool = False
  loops: int = 6
  loops_min: int = 0
  backprop_loops: int = 0
  latent_ratio: int = 4
  history: int = 3
  gate_init: float = 0.9
  loop_code_width: int = 32
  norm_eps: float = 1e-6
  rotary_theta: float = 1e4
  anchor: str = 'frozen'
  anchor_norm: bool = False
  share_core: bool = True
  core: str = 'cross'
  core_residual: bool = True
  blend: bool = True
  gate: bool = True
  loop_code: bool = True

  def __post_init__(self):
    if not self.heads and not self.head_width:
      object.__setattr__(self, 'head_width', 64)
    super().__post_init__()
    for field in ('loops', 'history'):
      require(getattr(self, field) >= 1, f'model.{field}={getattr(self, field)} must be at least 1')
    least = 0 if self.short_prelude else 2
    require(
      self.prelude_layers >= least,
      f'model.prelude_layers={self.prelude_layers} must be at least {least}'
      + (' (as published); set model.short_prelude=True to go below' if least else ''),
    )
    for field in ('loops_min', 'backprop_loops'):
      value = getattr(self, field)
      require(
        0 <= value <= self.loops,
        f'model.{field}={value} must lie between 0 and model.loops={self.loops}',
      )
    require_latent_ratio(self)
    require(0 < self.gate_init < 1, f'model.gate_init={self.gate_init} must lie in (0, 1)')
    code = self.loop_code_width
    require(code >= 2 and code % 2 == 0, f'model.loop_code_width={code} must be even and above 0')
    one_of('model.anchor', self.anchor, ('frozen', 'per_loop'))
    one_of('model.core', self.core, ('cross', 'self'))
    require(
      self.core == 'cross' or self.anchor == 'frozen',
      "model.core='self' has no anchor to renew; set model.anchor='frozen'",
    )
    require(
      not self.backprop_loops or (self.core == 'cross' and self.anchor == 'frozen'),
      f'model.backprop_loops={self.backprop_loops} leaves the prelude no gradient but through a '
      "frozen anchor; set model.core='cross' and model.anchor='frozen', or model.backprop_loops=0",
    )
    require(
      self.core_residual or not self.gate,
      'model.core_residual=False leaves the gate nothing to scale; set model.gate=False too',
    )

  @property
  def schedule(self) -> DepthSchedule:
    """Which R training draws."""
    return DepthSchedule((0,), ((self.loops_min or self.loops, self.loops),))


class CARTParts(NamedTuple):
  """Pure pieces, closed over the parameters; each takes a dropout key or None."""

  embed: object
  prelude: object
  anchor: object
  core: object
  coda: object
  head: object


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
      self.config.pass_scan,
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
