"""Scans over layers, passes and loops, with a choice of rematerialisation and unrolling."""

from collections.abc import Callable
from typing import Any

import jax

Remat = bool | Callable
MOST_WRITTEN_OUT = 32  # a model may be evaluated with far more passes than it was trained with


def scan_of(remat: Remat = False, unroll: bool = False) -> Callable:
  """Returns a scan of a body whose intermediate results the backward pass recomputes.

  Args:
    remat: False stores everything, True only the body's arguments, a policy of
      jax.checkpoint_policies whatever it names.
    unroll: writes all steps out, up to MOST_WRITTEN_OUT. Stored values are then not stacked and
      sliced, and operations of different steps can be fused, but compile time grows with the number
      of steps.
  """
  policy = None if isinstance(remat, bool) else remat

  def scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    is_written_out = unroll and len(jax.tree.leaves(xs)[0]) <= MOST_WRITTEN_OUT
    # In a scan the compiler cannot share results between forward and backward pass. An unrolled
    # loop needs a barrier for that: without one the compiler merges what both compute and stores
    # it. A policy asks for speed, so it gets no barrier, which cost 11 % of a CRT's step on a GPU.
    if remat is not False:
      body = jax.checkpoint(body, prevent_cse=is_written_out and policy is None, policy=policy)
    return jax.lax.scan(body, carry, xs, unroll=is_written_out)

  return scan
