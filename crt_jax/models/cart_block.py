"""A CART without embedding and head: prelude, anchor, R loops of the core, coda.

It is the body of a CART (models/cart.py), and a stack over which a CRT can stand.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from crt_jax.layers.attention import entries_of
from crt_jax.layers.linear import Linear
from crt_jax.layers.norm import Norm
from crt_jax.layers.parameters import axes_of, init_params
from crt_jax.layers.transformer_layer import TransformerLayer
from crt_jax.models.cart_loop import (
  Loop,
  history,
  is_cross,
  is_frozen,
  last_loop,
  loop_codes,
  make_loop,
  of_cache,
)
from crt_jax.models.config import pass_scan
from crt_jax.models.layer_stacks import (
  LayerStack,
  Stack,
  cart_keys_values,
  cart_layer,
  empty_cache,
  first_layer,
  with_layer_axis,
)
from crt_jax.models.modules import apply_module, axes_of_modules, init_modules
from crt_jax.recurrence.depth_loop import depth_loop
from crt_jax.schema import CARTConfig
from crt_jax.schema.fields import require
from crt_jax.types import Array, Params, Past, Tree


class BlockParts(NamedTuple):
  """Component functions, closed over the parameters; each takes a dropout key or None."""

  prelude: Callable
  anchor: Callable
  core: Callable
  coda: Callable


@dataclasses.dataclass(frozen=True)
class CARTBlock(Stack):
  """Prelude, anchor, core and coda as one stack that maps vectors to vectors."""

  stacked = (('prelude',),)
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
    """Returns the modules that exist once: the coda and what the anchor needs."""
    config = self.config
    modules: dict[str, nn.Module] = dict(coda=cart_layer(config))
    if is_cross(config):
      modules['anchor'] = cart_keys_values(config)
      if config.anchor_norm:
        modules['anchor_norm'] = Norm(config.width, 'rms', config.norm_eps)
    return modules

  def _loop_code(self) -> Linear:
    width, code = self.config.width, self.config.loop_code_width
    axes = ('width', 'loop_code')
    return Linear((width,), (code,), axes, bias=False, initializer='normal')

  # ---- parameters ----------------------------------------------------------------------------

  def init(self, key: Array, ends: dict | None = None) -> Params:
    """Returns new parameters, including those of the modules in `ends`, such as the embedding."""
    config = self.config
    prelude_key, core_key, code_key, key = jax.random.split(key, 4)
    params = init_modules((ends or {}) | self._modules(), config, key)
    params['loop_code'] = init_params(
      self._loop_code(), code_key, self._codes(1), dtype=config.param_dtype
    )
    params['prelude'] = self._prelude().init(prelude_key)
    example = self._core_example()

    def init_core(key: Array):
      return init_params(self._core(), key, *example, dtype=config.param_dtype)

    if config.share_core:
      params['core'] = init_core(core_key)
    else:
      params['core'] = jax.vmap(init_core)(jax.random.split(core_key, config.loops))
    params['blend'] = dict(weight=jnp.zeros(config.history, config.param_dtype).at[0].set(1))
    logit = math.log(config.gate_init / (1 - config.gate_init))
    params['gate'] = dict(logit=jnp.full(config.width, logit, config.param_dtype))
    return params

  def axes(self, ends: dict | None = None) -> dict:
    axes = axes_of_modules((ends or {}) | self._modules(), self.config)
    axes['loop_code'] = axes_of(self._loop_code(), self._codes(1))
    axes['prelude'] = self._prelude().axes()
    axes['core'] = axes_of(self._core(), *self._core_example())
    if not self.config.share_core:
      axes['core'] = jax.tree.map(lambda spec: PartitionSpec('loops', *spec), axes['core'])
    axes['blend'] = dict(weight=PartitionSpec('history'))
    axes['gate'] = dict(logit=PartitionSpec('width'))
    return axes

  def decayed(self) -> dict:
    used = super().decayed()
    for part in ('blend', 'gate', 'loop_code'):
      if not getattr(self.config, part):
        used[part] = jax.tree.map(lambda _: False, used[part])
    return used

  # ---- passes --------------------------------------------------------------------------------

  def parts(self, params: Params) -> BlockParts:
    modules = self._modules()

    def anchor(e_BxTxC: Array, key: Array | None = None):
      if self.config.anchor_norm:
        e_BxTxC = apply_module(modules['anchor_norm'], params['anchor_norm'], e_BxTxC)
      return apply_module(modules['anchor'], params['anchor'], e_BxTxC)

    def core(
      u_BxTxC: Array,
      core_params: Params | None = None,
      past: Past | None = None,
      given: tuple[Array, Array] | None = None,
      key: Array | None = None,
    ):
      if given is not None:
        require(
          given[0].shape[1] == u_BxTxC.shape[1],
          f'given: an anchor of {given[0].shape[1]} positions does not fit u_BxTxC of '
          f'{u_BxTxC.shape[1]}; make it of the same tokens',
        )
      core_params = params['core'] if core_params is None else core_params
      extra = () if given is None else (given,)
      return apply_module(self._core(), core_params, u_BxTxC, past, *extra, key=key)

    return BlockParts(
      prelude=self._prelude().block(params['prelude']),
      anchor=anchor,
      core=core,
      coda=functools.partial(apply_module, modules['coda'], params['coda']),
    )

  def block(self, params: Params) -> Callable:
    return lambda x_BxTxC, past=None, key=None: self.run(params, x_BxTxC, past, key)[:2]

  def run(
    self,
    params: Params,
    x_BxTxC: Array,
    past: Past | None,
    key: Array | None = None,
    depth: int | None = None,
    probe_R: Array | None = None,
  ) -> tuple[Array, Any, dict]:
    """Returns the output, the new entries of every cache and the statistics of the loops.

    The entries are None if `past` is None.

    Args:
      past: caches by name, and the position after them, see `Stack.block`.
      depth: R; None = configured.
      probe_R: see recurrence/depth_loop.py.
    """
    depth = depth or self.config.loops
    parts = self.parts(params)
    prelude_key, core_key, coda_key = (None,) * 3 if key is None else jax.random.split(key, 3)
    e_BxTxC, prelude_entries = parts.prelude(x_BxTxC, of_cache(past, 'prelude'), prelude_key)
    loop = self._loop(params, e_BxTxC, past, depth, core_key)
    # On a GPU a scan copies the ring of states in every loop, and splits the CUDA graph of a token.
    is_token = past is not None and x_BxTxC.shape[1] == 1
    (h_BxTxC, *_), core_entries, statistics = depth_loop(
      loop.step,
      e_BxTxC,
      depth,
      history(self.config),
      loop.per_loop,
      pass_scan(self.config, unroll=is_token),
      probe_R,
      self.config.backprop_loops,
    )
    coda_past = first_layer(of_cache(past, 'coda'))
    h_BxTxC, coda_entries = parts.coda(h_BxTxC, coda_past, key=coda_key)
    if past is None:
      return h_BxTxC, None, statistics
    entries = dict(prelude=prelude_entries, coda=with_layer_axis(coda_entries))
    if loop.frozen is not None:
      entries['anchor'] = with_layer_axis(entries_of(*loop.frozen))
    else:
      entries['core'] = core_entries
    return h_BxTxC, entries, statistics

  def _loop(
    self, params: Params, e_BxTxC: Array, past: Past | None, depth: int, key: Array | None
  ) -> Loop:
    code = params['loop_code']
    codes_RxC = apply_module(self._loop_code(), code, self._codes(depth, code['weight'].dtype))
    return make_loop(self.config, self.parts(params), params, codes_RxC, e_BxTxC, past, key)

  def last_loop(self, params: Params, x_BxTxC: Array, depth: int) -> tuple:
    """Returns what `Model.recurrent_map` returns."""
    e_BxTxC, _ = self.parts(params).prelude(x_BxTxC)
    return last_loop(self.config, self._loop(params, e_BxTxC, None, depth, None), e_BxTxC)

  def _codes(self, depth: int, dtype: DTypeLike | None = None) -> Array:
    return loop_codes(depth, self.config.loop_code_width, dtype or self.config.param_dtype)

  def cache(self, batch: int, max_len: int, depth: int | None = None) -> dict[str, Tree]:
    config = self.config
    shape = (batch, max_len, config.heads, config.head_width, config.dtype)
    caches = dict(prelude=self._prelude().cache(batch, max_len), coda=empty_cache(1, *shape))
    if is_frozen(config):
      caches['anchor'] = empty_cache(1, *shape)
    else:
      caches['core'] = empty_cache(depth or config.loops, *shape)
    return caches
