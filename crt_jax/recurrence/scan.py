"""Scans over layers, passes and loops, with a choice of rematerialisation and unrolling."""

import functools
from collections.abc import Callable

import jax

Remat = bool | Callable


def scan_of(remat: Remat = False, unroll: bool = False) -> Callable:
  """Returns a scan of a body whose intermediate results the backward pass recomputes.

  Args:
    remat: False stores everything, True nothing but the body's arguments, a policy of
      jax.checkpoint_policies what it names.
    unroll: writes all steps out. What the backward pass reads is then not stacked and sliced, and
      products and elementwise operations of different steps can be fused; compile time grows with
      the number of steps.
  """
  if remat is False:
    return functools.partial(jax.lax.scan, unroll=unroll)
  policy = None if remat is True else remat
  # A scan keeps forward and backward pass apart. Written out, only a barrier would: without one
  # the compiler merges what it finds in both and stores it. Under a policy, which is asked for
  # speed, it may: a barrier cost 11 % of a CRT's step on a GPU (and saved memory).
  remade = functools.partial(jax.checkpoint, prevent_cse=unroll and policy is None, policy=policy)
  return lambda body, carry, xs: jax.lax.scan(remade(body), carry, xs, unroll=unroll)
