"""A recurrent cell as the block of a CRT; its state is any tree of arrays (docs/bptt.md)."""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from crt_jax.models.layer_stacks import Stack
from crt_jax.recurrence.state import Carry
from crt_jax.schema import CRTConfig
from crt_jax.types import Array, Params, Tree


@dataclasses.dataclass(frozen=True)
class Cell(Stack):
  """A stack of one recurrent cell; a subclass defines `init`, `axes`, `start` and `step`."""

  config: CRTConfig

  @abc.abstractmethod
  def start(self, batch: int) -> Tree:
    """Returns the state before the first position: any tree of arrays [B, ...]."""

  @abc.abstractmethod
  def step(self, params: Params, state: Tree, x_BxC: Array) -> tuple[Tree, Array]:
    """Consumes one position; returns the new state and z_BxC."""

  def cache(self, batch: int, max_len: int) -> Carry:
    return Carry(self.start(batch))

  def block(self, params: Params) -> Callable:
    def block(x_BxTxC: Array, past: tuple | None = None, key: Array | None = None):
      before = self.cache(x_BxTxC.shape[0], 0) if past is None else past[0]

      def one(state: Tree, x_BxC: Array):
        new, z_BxC = self.step(params, state, x_BxC)
        new = jax.tree.map(lambda a, old: a.astype(old.dtype), new, state)
        return new, (new, z_BxC)

      state = jax.tree.map(
        lambda a: a.astype(jnp.promote_types(a.dtype, x_BxTxC.dtype)) if _is_real(a) else a,
        before.value,
      )
      _, of_T = jax.lax.scan(one, state, jnp.swapaxes(x_BxTxC, 0, 1))
      states, z_BxTxC = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), of_T)
      return z_BxTxC, None if past is None else Carry(states)

    return block


def _is_real(a: Array) -> bool:
  return jnp.issubdtype(a.dtype, jnp.floating)
