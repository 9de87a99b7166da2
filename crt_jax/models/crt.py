"""The context-ready transformer (crt.md): a block whose output at t-1 prepares its input at t.

Training runs K parallel passes; generation runs the exact recurrence, one pass per token.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crt_jax.layers.linear import Dropout
from crt_jax.models import corrections, crt_training, decode_kernel
from crt_jax.models.base import Hidden, Model
from crt_jax.models.cart_block import CARTBlock
from crt_jax.models.config import RecurrentPasses, pass_scan
from crt_jax.models.counts import of_crt, work_of_crt
from crt_jax.models.ends import embed, project
from crt_jax.models.layer_stacks import Stack, layers_of
from crt_jax.models.modules import apply_module, axes_of_modules, init_modules
from crt_jax.recurrence.passes import (
  Passes,
  Recurrence,
  chunked,
  correction_map,
  sequential,
  unroll,
)
from crt_jax.recurrence.state import DecodeState
from crt_jax.rounding import round_up
from crt_jax.schema import CRTConfig
from crt_jax.schema.fields import one_of, require
from crt_jax.types import AnyArray, Array, Params

# model.block -> the function that makes the block.
BLOCKS = {
  'transformer': layers_of,
  'cart': lambda config: CARTBlock(config.cart),
}


def block_of(config: CRTConfig) -> Stack:
  """Returns the stack that `config.block` selects."""
  return BLOCKS[config.block](config)


class CRTParts(NamedTuple):
  """Component functions, closed over the parameters; each takes a dropout key or None."""

  embed: Callable
  block: Callable
  summary: Callable
  inject: Callable
  head: Callable


@dataclasses.dataclass(frozen=True)
class CRT(Model[CRTConfig]):
  """The context-ready transformer over a block and with a correction; `depth` is K.

  Attributes:
    make_block, make_correction: make both from the configuration, see docs/adding_a_model.md.
  """

  Config = CRTConfig
  passes = RecurrentPasses('depth', 'K', 'parallel passes')
  counts = staticmethod(of_crt)
  work = staticmethod(work_of_crt)
  make_block: Callable[[CRTConfig], Stack] = block_of
  make_correction: Callable[[CRTConfig], corrections.Correction] = corrections.Correction

  @property
  def block(self) -> Stack:
    return self.make_block(self.config)

  @property
  def correction(self) -> corrections.Correction:
    return self.make_correction(self.config)

  def __post_init__(self):
    config = self.config
    drivers = [driver for driver, gradient in TRAINED if gradient == config.gradient]
    one_of(f'model.gradient={config.gradient!r}: model.driver', config.driver, drivers)
    reads_embedding = self.variant.network == 'inject'
    require(
      config.gradient != 'last_passes' or reads_embedding or not config.cumulative,
      "model.gradient='last_passes' leaves the embedding no gradient with model.cumulative=True "
      f"and model.correction={config.correction!r}; use model.gradient='full'",
    )
    require(
      not self.correction.borrows or self.block.lends,
      f'model.correction={self.config.correction!r} borrows the feed-forward of the last layer of '
      f"the block, and a {type(self.block).__name__} lends none; use model.correction='add'",
    )

  @property
  def variant(self) -> corrections.Variant:
    return corrections.variant_of(self.config.correction)

  @property
  def stacked(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
    return {('layers', *path): ('block', *path) for path in self.block.stacked}

  @property
  def has_sequential_form(self) -> bool:
    return not (self.config.cumulative or self.config.self_inclusive)

  def _modules(self) -> dict:
    return self.block.ends(self.config)

  def init(self, key: Array) -> Params:
    stack_key, output_key, correction_key = jax.random.split(key, 3)
    params = init_modules(self._modules(), self.config, output_key)
    params['layers'] = self.block.init(stack_key)
    correction = self.correction.init(correction_key)
    return params | ({'correction': correction} if correction else {})

  def axes(self) -> dict:
    axes = axes_of_modules(self._modules(), self.config)
    axes['layers'] = self.block.axes()
    correction = self.correction.axes()
    return axes | ({'correction': correction} if correction else {})

  def parts(self, params: Params) -> CRTParts:
    config, layers = decode_kernel.config_for(self.config, params), params['layers']
    block, correction = self.make_block(config), self.make_correction(config)
    borrowed = block.last_layer(layers) if correction.borrows else {}
    summary, inject = correction.functions(params.get('correction', {}), borrowed)
    return CRTParts(
      embed=functools.partial(self.embed, params),
      block=block.block(layers),
      summary=summary,
      inject=inject,
      head=lambda hidden, key=None: self.head(params, hidden),
    )

  @property
  def recurs_along_sequence(self) -> bool:
    return True

  def is_usable_at(self, depth: int | None) -> bool:
    return depth != 1  # one pass has no recurrence (crt.md 4)

  def recurrence(self, params: Params) -> Recurrence:
    parts = self.parts(params)
    shift = not self.config.self_inclusive
    return Recurrence(parts.block, parts.summary, parts.inject, shift, pass_scan(self.config))

  def read(self, done: Passes) -> Array:
    """Returns what the head reads after the last pass."""
    return done.x_next_BxTxC if self.correction.head_reads_input else done.z_BxTxC

  @property
  def max_positions(self) -> int:
    return self._modules()['embedding'].max_positions

  def embed(
    self,
    params: Params,
    tokens_BxT: AnyArray,
    key: Array | None = None,
    start_B: Array | None = None,
  ) -> Array:
    """Returns e_BxTxC, with dropout applied once for all passes; start_B as in models/ends.py."""
    e_BxTxC = embed(self._modules(), params, tokens_BxT, start_B)
    return apply_module(Dropout(self.config.dropout), {}, e_BxTxC, key=key)

  def hidden(
    self,
    params: Params,
    tokens_BxT: AnyArray,
    depth: int | None = None,
    key: Array | None = None,
    telemetry: bool = False,
    probe_R: Array | None = None,
  ) -> Hidden:
    depth = self.resolve_depth(depth)
    probe_R = self._probe(depth, telemetry, probe_R)
    embed_key, key = (None, None) if key is None else jax.random.split(key)
    e_BxTxC = self.embed(params, tokens_BxT, embed_key)
    done = unroll(self.recurrence(params), e_BxTxC, depth, self.config.start, key, probe_R)
    return self.with_convergence_loss(*self.read_with_gap(done), done.statistics)

  def read_with_gap(self, done: Passes) -> tuple[Array, Array]:
    """Returns what the head reads, and the mean squared change by one more pass, [B, T]."""
    gap_BxTxC = done.x_next_BxTxC - jax.lax.stop_gradient(done.x_BxTxC)
    return self.read(done), jnp.mean(gap_BxTxC**2, axis=-1)

  def with_convergence_loss(
    self, hidden_BxTxC: Array, gap_BxT: Array, statistics: dict[str, Array] | None = None
  ) -> Hidden:
    """Returns `Hidden` with the convergence loss, from the results of `read_with_gap`."""
    weight = self.config.convergence_weight
    losses = dict(convergence=weight * jnp.mean(gap_BxT)) if weight > 0 else {}
    return Hidden(hidden_BxTxC, losses, statistics or {})

  @property
  def training_hidden(self) -> Callable[..., Hidden]:
    trained = TRAINED[self.config.driver, self.config.gradient]
    return functools.partial(crt_training.hidden, trained, self) if trained else self.hidden

  @property
  def stride(self) -> int:
    """The number of positions in each step of the loop over a sequence."""
    return self.config.chunk if self.config.driver == 'chunked' else 1

  def check_telemetry(self) -> None:
    for field, needed in (('driver', 'unroll'), ('gradient', 'full')):
      found = getattr(self.config, field)
      require(
        found == needed,
        f'model.{field}={found!r} has no states between passes to measure; set '
        f'train.telemetry_every=0, or model.{field}={needed!r}',
      )

  def check_length(self, length: int) -> list[str]:
    chunk, remarks = self.stride, super().check_length(length)
    require(
      chunk <= length, f'model.chunk={chunk} exceeds the {length} positions; use at most {length}'
    )
    if length % chunk:
      remarks.append(
        f'model.chunk={chunk} does not divide the {length} positions: the last chunk is padded by '
        f'{-length % chunk}, which changes nothing but the time'
      )
    if self.config.gradient == 'truncated':
      reach = self.config.gradient_reach
      require(
        reach <= length,
        f'model.gradient_reach={reach} exceeds the {length} positions; use at most {length}',
      )
    return remarks

  def head(self, params: Params, hidden: Array) -> Array:
    config = decode_kernel.config_for(self.config, params)
    return project(self._modules(), params, hidden, config)

  def resolve_depth(self, depth: int | None) -> int:
    depth = self.config.depth if depth is None else depth
    require(depth >= 1, f'depth={depth} must be at least 1 (K block passes)')
    return depth

  def recurrent_map(self, params: Params, tokens_BxT: AnyArray, depth: int | None = None) -> tuple:
    recurrence, e_BxTxC = self.recurrence(params), self.embed(params, tokens_BxT)
    done = unroll(recurrence, e_BxTxC, self.resolve_depth(depth), self.config.start)
    return correction_map(recurrence, e_BxTxC), done.x_BxTxC, None

  def probes(self, depth: int | None = None) -> int:
    return self.resolve_depth(depth) - 1

  def decayed(self) -> dict:
    used = super().decayed() | dict(layers=self.block.decayed())
    never_corrects = self.depths() == (1,) and not self.correction.head_reads_input
    if never_corrects and self.config.convergence_weight == 0 and 'correction' in used:
      used['correction'] = jax.tree.map(lambda _: False, used['correction'])
    return used

  def depths(self) -> tuple[int, ...] | None:
    return None if self.config.driver == 'sequential' else self.config.schedule.depths()

  def depth_at(self, seed: int, step: int) -> int | None:
    return None if self.config.driver == 'sequential' else self.config.schedule.draw(seed, step)

  def decode_state(self, batch: int, max_len: int, depth: int | None = None) -> DecodeState:
    self.config.require_sequential_form('decoding')
    require(depth is None, f'depth={depth}: a CRT has one exact sequential form; use depth=None')
    caches = dict(
      block=self.block.cache(batch, max_len), correction=self.correction.cache(batch, max_len)
    )
    caches = {name: cache for name, cache in caches.items() if cache is not None}
    return DecodeState(caches, self.correction.no_summary(batch), jnp.zeros(batch, jnp.int32))

  def training_state(self, e_BxTxC: Array) -> DecodeState:
    """Returns an empty state with all rows at the same position and the caches `loss` needs.

    The caches hold the whole sequence, or as much as the attention window reads.
    """
    batch, length, _ = e_BxTxC.shape
    capacity, window = round_up(length, self.stride), self.config.window
    trailing = 0 < window <= capacity
    state = self.decode_state(batch, window - 1 if trailing else capacity)
    state, trailing = state.widened(e_BxTxC.dtype), trailing and state.capacity is not None
    return dataclasses.replace(state, position_B=jnp.zeros(1, jnp.int32), trailing=trailing)

  def advance(
    self,
    params: Params,
    state: DecodeState,
    tokens_BxT: AnyArray,
    lengths_B: Array | None,
    method: str,
  ) -> tuple[DecodeState, Array]:
    e_BxTxC = self.embed(params, tokens_BxT, start_B=state.position_B)
    recurrence = self.recurrence(params)
    if method == 'sequential':
      return sequential(recurrence, self.read, state, e_BxTxC, lengths_B)
    whole = dict(chunk=tokens_BxT.shape[1], depth=self.config.depth, start=self.config.start)
    return chunked(recurrence, self.read, state, e_BxTxC, lengths_B, **whole)


# (driver, gradient) -> the function that `loss` differentiates.
TRAINED: dict[tuple[str, str], Callable | None] = {
  ('unroll', 'full'): None,  # CRT.hidden
  ('unroll', 'last_passes'): crt_training.last_passes,
  ('unroll', 'implicit'): crt_training.implicit,
  ('chunked', 'full'): crt_training.chunks,
  ('chunked', 'truncated'): crt_training.chunks,
  ('sequential', 'full'): crt_training.sequential,
  ('sequential', 'truncated'): crt_training.sequential,
}
