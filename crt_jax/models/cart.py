"""The context-anchored recurrent transformer (cart.md).

A prelude encodes the text once, a shared core loops R times over its frozen keys and values, a coda
finishes.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from crt_jax.models.base import Hidden, Model
from crt_jax.models.cart_block import CARTBlock
from crt_jax.models.cart_loop import mixing_statistics
from crt_jax.models.config import RecurrentPasses
from crt_jax.models.counts import of_cart, work_of_cart
from crt_jax.models.transformer import embed, output_modules, project
from crt_jax.recurrence.state import DecodeState, advance
from crt_jax.schema import CARTConfig
from crt_jax.schema.fields import require


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
  stacked = {path: path for path in CARTBlock.stacked}
  config: CARTConfig

  @property
  def block(self) -> CARTBlock:
    return CARTBlock(self.config)

  def _ends(self) -> dict:
    return output_modules(self.config, tied=True)

  def init(self, key):
    return self.block.init(key, self._ends())

  def axes(self):
    return self.block.axes(self._ends())

  def decayed(self):
    return super().decayed() | self.block.decayed()

  # ---- passes --------------------------------------------------------------------------------

  def parts(self, params):
    return CARTParts(
      embed=lambda tokens, key=None: embed(self._ends(), params, tokens),
      head=lambda hidden, key=None: self.head(params, hidden),
      **self.block.parts(params)._asdict(),
    )

  def hidden(self, params, tokens_BxT, depth=None, key=None, telemetry=False, probe_R=None):
    depth = self.resolve_depth(depth)
    probe_R = self._probe(depth, telemetry, probe_R)
    x_BxTxC = embed(self._ends(), params, tokens_BxT)
    h_BxTxC, _, statistics = self.block.run(params, x_BxTxC, None, key, depth, probe_R)
    if probe_R is not None:
      statistics = statistics | mixing_statistics(self.config, params)
    return Hidden(h_BxTxC, {}, statistics)

  def recurrent_map(self, params, tokens_BxT, depth=None):
    x_BxTxC = embed(self._ends(), params, tokens_BxT)
    return self.block.last_loop(params, x_BxTxC, self.resolve_depth(depth))

  def head(self, params, hidden):
    return project(self._ends(), params, hidden, self.config)

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
    depth = self.resolve_depth(depth)
    caches = self.block.cache(batch, max_len, depth)
    return DecodeState(caches, None, jnp.zeros(batch, jnp.int32), depth)

  def advance(self, params, state, tokens_BxT, lengths_B, method):
    x_BxTxC, past = embed(self._ends(), params, tokens_BxT), (state.caches, *state.place)
    h_BxTxC, entries, _ = self.block.run(params, x_BxTxC, past, depth=state.depth)
    return advance(state, entries, None, lengths_B), h_BxTxC
