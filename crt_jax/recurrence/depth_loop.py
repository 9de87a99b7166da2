"""The recurrence along depth: one step applied R times to a ring of its latest states."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def depth_loop(
  step: Callable,
  start_BxTxC: Array,
  depth: int,
  history: int,
  per_loop=None,
  remat: bool = False,
  backprop: int = 0,
) -> tuple[Array, dict | None]:
  """Runs h_r = step(h_{r-1}, ..., h_{r-history}) for r = 0..depth-1 (cart.md 2.4 and 2.7).

  Args:
    step: ring (newest first), r, this loop's slice of per_loop -> h_BxTxC, anything to collect.
    start_BxTxC: fills all slots of the ring before the first loop.
    per_loop: arrays with a leading axis of length `depth`, or None.
    remat: recompute each loop in the backward pass; it then stores the ring alone.
    backprop: gradients flow through the last so many loops only: the ring before them counts as a
      constant, the value stays the same; 0 = through all.

  Returns: the last state and what the steps returned besides, stacked over loops.
  """

  def one(ring, loop_input):
    h_BxTxC, collected = step(ring, *loop_input)
    return (h_BxTxC, *ring[:-1]), collected

  body = jax.checkpoint(one, prevent_cse=False) if remat else one
  ring, inputs = (start_BxTxC,) * history, (jnp.arange(depth), per_loop)
  constant = max(depth - backprop, 0) if backprop else 0
  if not constant:
    ring, collected = jax.lax.scan(body, ring, inputs)
    return ring[0], collected
  ring, first = jax.lax.scan(body, ring, jax.tree.map(lambda a: a[:constant], inputs))
  ring = jax.lax.stop_gradient(ring)
  ring, last = jax.lax.scan(body, ring, jax.tree.map(lambda a: a[constant:], inputs))
  return ring[0], jax.tree.map(lambda *a: jnp.concatenate(a), first, last)
