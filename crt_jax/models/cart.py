"""The context-anchored recurrent transformer (cart.md).

A prelude encodes the text once, a shared core loops R times over its frozen keys and values, a coda
finishes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from crt_jax.models.base import Hidden, Model
from crt_jax.models.cart_block import CARTBlock
from crt_jax.models.cart_loop import mixing_statistics
from crt_jax.models.config import RecurrentPasses
from crt_jax.models.counts import of_cart, work_of_cart
from crt_jax.models.ends import embed, project, tied_ends
from crt_jax.recurrence.state import DecodeState, advance
from crt_jax.schema import CARTConfig
from crt_jax.schema.fields import require
from crt_jax.types import AnyArray, Array, Params


class CARTParts(NamedTuple):
  """Component functions, closed over the parameters; each takes a dropout key or None."""

  embed: Callable
  prelude: Callable
  anchor: Callable
  core: Callable
  coda: Callable
  head: Callable


@dataclasses.dataclass(frozen=True)
class CART(Model[CARTConfig]):
  """The context-anchored recurrent transformer; `depth` is the number of loops R."""

  Config = CARTConfig
  passes = RecurrentPasses('loops', 'R', 'loops')
  counts = staticmethod(of_cart)
  work = staticmethod(work_of_cart)

  @property
  def stacked(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
    return {path: path for path in self.block.stacked}

  @property
  def block(self) -> CARTBlock:
    return CARTBlock(self.config)

  def _ends(self) -> dict:
    return tied_ends(self.config)

  def init(self, key: Array) -> Params:
    return self.block.init(key, self._ends())

  def axes(self) -> dict:
    return self.block.axes(self._ends())

  def decayed(self) -> dict:
    return super().decayed() | self.block.decayed()

  # ---- passes --------------------------------------------------------------------------------

  def parts(self, params: Params) -> CARTParts:
    return CARTParts(
      embed=lambda tokens, key=None: embed(self._ends(), params, tokens),
      head=lambda hidden, key=None: self.head(params, hidden),
      **self.block.parts(params)._asdict(),
    )

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
    x_BxTxC = embed(self._ends(), params, tokens_BxT)
    h_BxTxC, _, statistics = self.block.run(params, x_BxTxC, None, key, depth, probe_R)
    if probe_R is not None:
      statistics = statistics | mixing_statistics(self.config, params)
    return Hidden(h_BxTxC, {}, statistics)

  def recurrent_map(self, params: Params, tokens_BxT: AnyArray, depth: int | None = None) -> tuple:
    x_BxTxC = embed(self._ends(), params, tokens_BxT)
    return self.block.last_loop(params, x_BxTxC, self.resolve_depth(depth))

  def head(self, params: Params, hidden: Array) -> Array:
    return project(self._ends(), params, hidden, self.config)

  # ---- depth and decoding --------------------------------------------------------------------

  def resolve_depth(self, depth: int | None) -> int:
    depth = self.config.loops if depth is None else depth
    require(depth >= 1, f'depth={depth} must be at least 1 (R loops)')
    require(
      self.config.share_core or depth <= self.config.loops,
      f'depth={depth}: an unshared core has only model.loops={self.config.loops} blocks; '
      f'use depth={self.config.loops} or less, or model.share_core=True',
    )
    return depth

  def probes(self, depth: int | None = None) -> int:
    return self.resolve_depth(depth)

  def depths(self) -> tuple[int, ...]:
    return self.config.schedule.depths()

  def depth_at(self, seed: int, step: int) -> int:
    return self.config.schedule.draw(seed, step)

  def decode_state(self, batch: int, max_len: int, depth: int | None = None) -> DecodeState:
    depth = self.resolve_depth(depth)
    caches = self.block.cache(batch, max_len, depth)
    return DecodeState(caches, None, jnp.zeros(batch, jnp.int32), depth)

  def advance(
    self,
    params: Params,
    state: DecodeState,
    tokens_BxT: AnyArray,
    lengths_B: Array | None,
    method: str,
  ) -> tuple[DecodeState, Array]:
    x_BxTxC, past = embed(self._ends(), params, tokens_BxT), state.past()
    h_BxTxC, entries, _ = self.block.run(params, x_BxTxC, past, depth=state.depth)
    return advance(state, entries, None, lengths_B), h_BxTxC
