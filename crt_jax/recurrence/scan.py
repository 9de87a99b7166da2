"""Scans over layers, passes and loops: what the backward pass recomputes, what is written out."""

import dataclasses
from collections.abc import Callable

import jax

Remat = bool | Callable


@dataclasses.dataclass(frozen=True)
class Scan:
  """`jax.lax.scan` of a body whose intermediate results are recomputed in the backward pass.

  Attributes:
    remat: False stores everything, True nothing but the body's arguments, a policy of
      jax.checkpoint_policies what it names.
    unroll: writes all steps out. What the backward pass reads is then not stacked and sliced, and
      products and elementwise operations of different steps can be fused; compile time grows with
      the number of steps.
  """

  remat: Remat = False
  unroll: bool = False

  def __call__(self, body: Callable, carry, xs):
    if self.remat is not False:
      policy = None if self.remat is True else self.remat
      # A scan keeps forward and backward pass apart. Written out, only a barrier would: without one
      # the compiler merges what it finds in both and stores it. Under a policy, which is asked for
      # speed, it may: a barrier cost 11 % of a CRT's step on a GPU (and saved memory).
      body = jax.checkpoint(body, prevent_cse=self.unroll and policy is None, policy=policy)
    return jax.lax.scan(body, carry, xs, unroll=self.unroll)
