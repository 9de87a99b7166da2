"""Scans over layers, passes and loops, with a choice of rematerialisation and unrolling."""

import functools
from collections.abc import Callable

import jax

Remat = bool | Callable


def scan_of(remat: Remat = False, unroll: bool = False) -> Callable:
  """Returns a scan of a body whose intermediate results the backward pass recomputes.

  Args:
    remat: False stores everything, True only the body's arguments, a policy of
      jax.checkpoint_policies whatever it names.
    unroll: writes all steps out. Stored values are then not stacked and sliced, and operations of
      different steps can be fused, but compile time grows with the number of steps.
  """
  if remat is False:
    return functools.partial(jax.lax.scan, unroll=unroll)
  policy = None if remat is True else remat
  # In a scan the compiler cannot share results between forward and backward pass. An unrolled loop
  # needs a barrier for that: without one the compiler merges what both compute and stores it. A
  # policy asks for speed, so it gets no barrier, which cost 11 % of a CRT's step on a GPU.
  remade = functools.partial(jax.checkpoint, prevent_cse=unroll and policy is None, policy=policy)
  return lambda body, carry, xs: jax.lax.scan(remade(body), carry, xs, unroll=unroll)
