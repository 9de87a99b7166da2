"""What the backward pass of a loop over stretches of a sequence stores, and what it recomputes.

Every loop here is called like `jax.lax.scan(step, state, xs)` and returns the same. `step` takes a
DecodeState and one stretch of xs = (e_JxBxcxC, ...), J stretches of c positions, and advances the
state by all c of them. Per stretch, beside what goes in and out of the loop:

  jax.lax.scan   stores all activations, and the caches again: T^2 with full attention
  segments       stores the state of every sqrt(J)-th stretch and what lies between two of them;
                 forward work is done twice; little memory where the state is small (a window)
  replay         stores nothing but the caches themselves: what `advance` writes is never lost, so
                 the backward pass restores each state from its successor; forward work is done
                 twice; the fastest, but no forward-mode derivatives (a custom_vjp)

Forward-mode derivatives (jvp) pass through the first two.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crt_jax.recurrence.state import DecodeState, leaving, rewind
from crt_jax.types import Array

Loop = Callable[[Callable, DecodeState, tuple], tuple[DecodeState, Any]]


def segments(step: Callable, state: DecodeState, xs: tuple) -> tuple[DecodeState, Any]:
  """A scan whose backward pass recomputes segments of sqrt(J) stretches, one at a time."""
  one_segment = jax.checkpoint(lambda state, xs: jax.lax.scan(step, state, xs), prevent_cse=False)
  length = round(xs[0].shape[0] ** 0.5)
  return in_stretches(one_segment, state, xs, length)


def in_stretches(
  one: Callable, state: DecodeState, xs: tuple, length: int
) -> tuple[DecodeState, Any]:
  """Runs `one`(state, xs) over stretches of `length` elements of xs and a shorter last one."""
  whole = xs[0].shape[0] // length * length

  def split(a: Array) -> Array:
    return a[:whole].reshape(whole // length, length, *a.shape[1:])

  state, ys = jax.lax.scan(one, state, jax.tree.map(split, xs))
  ys = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), ys)
  if whole == xs[0].shape[0]:
    return state, ys
  state, rest = one(state, jax.tree.map(lambda a: a[whole:], xs))
  return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, rest)


def replay(step: Callable, state: DecodeState, xs: tuple) -> tuple[DecodeState, Any]:
  """A scan whose backward pass walks from the last state back, with the final caches in hand.

  A slot behind the position is not read, so an append-only cache is the cache of every earlier
  state too; a trailing one gets back the slots that left it.
  """
  e_JxBxcxC, *others_J = xs
  count, _, chunk, _ = e_JxBxcxC.shape
  step, consts = jax.closure_convert(step, state, jax.tree.map(lambda a: a[0], xs))
  position_JxB = state.position_B[None] + chunk * jnp.arange(count, dtype=jnp.int32)[:, None]

  def advanced(live: tuple, e_BxcxC: Array, consts: list[Array], fixed: tuple):
    """`step` as a function of what has a gradient: caches and summary, embeddings, parameters."""
    position_B, *others = fixed
    before = dataclasses.replace(
      state, caches=live[0], recurrent_BxC=live[1], position_B=position_B
    )
    after, y = step(before, (e_BxcxC, *others), *consts)
    return (after.caches, after.recurrent_BxC), y

  def forward(consts: list[Array], live: tuple, e_JxBxcxC: Array, fixed_J: Array):
    def body(live: tuple, x: tuple):
      kept = leaving(live[0], chunk) if state.trailing else None, live[1]
      live, y = advanced(live, x[0], consts, x[1])
      return live, (y, kept)

    live, (y_J, kept_J) = jax.lax.scan(body, live, (e_JxBxcxC, fixed_J))
    return (live, y_J), (consts, live[0], kept_J, e_JxBxcxC, fixed_J)

  def backward(residuals: tuple, cotangents: tuple):
    consts, caches, kept_J, e_JxBxcxC, fixed_J = residuals

    def body(carry: tuple, x: tuple):
      caches, dlive, dconsts = carry
      e_BxcxC, fixed, (left, recurrent_BxC), dy = x
      caches = rewind(caches, left) if state.trailing else caches
      inputs = ((caches, recurrent_BxC), e_BxcxC, consts)
      _, pullback = jax.vjp(lambda live, e, consts: advanced(live, e, consts, fixed), *inputs)
      dlive, de_BxcxC, dstep = pullback((dlive, dy))
      return (caches, dlive, jax.tree.map(jnp.add, dconsts, dstep)), de_BxcxC

    dlive, dy_J = cotangents
    start = (caches, dlive, jax.tree.map(jnp.zeros_like, consts))
    stored_J = (e_JxBxcxC, fixed_J, kept_J, dy_J)
    (_, dlive, dconsts), de_JxBxcxC = jax.lax.scan(body, start, stored_J, reverse=True)
    return dconsts, dlive, de_JxBxcxC, None

  run = jax.custom_vjp(lambda *inputs: forward(*inputs)[0])
  run.defvjp(forward, backward)
  live = (state.caches, state.recurrent_BxC)
  (caches, recurrent_BxC), y_J = run(consts, live, e_JxBxcxC, (position_JxB, *others_J))
  position_B = state.position_B + count * chunk
  return dataclasses.replace(
    state, caches=caches, recurrent_BxC=recurrent_BxC, position_B=position_B
  ), y_J


LOOPS = {'replay': replay, 'segments': segments, 'scan': jax.lax.scan}
