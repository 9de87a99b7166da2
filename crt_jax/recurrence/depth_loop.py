"""The recurrence along depth: one step applied R times to a ring of its latest states."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from crt_jax.recurrence.probes import gradient_probe, loop_statistics
from crt_jax.types import Array, Tree


def depth_loop(
  step: Callable,
  start_BxTxC: Array,
  depth: int,
  history: int,
  per_loop: Tree = None,
  scan: Callable = jax.lax.scan,
  probe_R: Array | None = None,
  backprop: int = 0,
) -> tuple[tuple[Array, ...], dict | None, dict]:
  """Runs h_r = step(h_{r-1}, ..., h_{r-history}) for r = 0..depth-1 (cart.md 2.4 and 2.7).

  Args:
    step: ring (newest first), r, this loop's slice of per_loop -> h_BxTxC, anything to collect.
    start_BxTxC: fills all slots of the ring before the first loop.
    per_loop: arrays with a leading axis of length `depth`, or None.
    scan: runs the loops, see scan.py.
    probe_R: zeros, one per loop, to request statistics; their gradients are the squared norms of
      the gradients at the loops' outputs.
    backprop: the number of last loops that gradients flow through: the ring before them is treated
      as a constant, and the value stays the same; 0 = all loops.

  Returns: the ring, newest first; what the steps collected, and the statistics ({} without
    probe_R), both stacked over loops.
  """

  def one(ring: tuple[Array, ...], loop_input: tuple):
    r, loop_slice, probe = loop_input
    h_BxTxC, collected = step(ring, r, loop_slice)
    statistics = {}
    if probe is not None:
      h_BxTxC = gradient_probe(h_BxTxC, probe)
      statistics = loop_statistics(h_BxTxC, ring[0])
    return (h_BxTxC, *ring[:-1]), (collected, statistics)

  ring, inputs = (start_BxTxC,) * history, (jnp.arange(depth), per_loop, probe_R)
  constant = max(depth - backprop, 0) if backprop else 0
  if not constant:
    ring, (collected, statistics) = scan(one, ring, inputs)
    return ring, collected, statistics
  ring, first = scan(one, ring, jax.tree.map(lambda a: a[:constant], inputs))
  ring = jax.lax.stop_gradient(ring)
  ring, last = scan(one, ring, jax.tree.map(lambda a: a[constant:], inputs))
  collected, statistics = jax.tree.map(lambda *a: jnp.concatenate(a), first, last)
  return ring, collected, statistics
