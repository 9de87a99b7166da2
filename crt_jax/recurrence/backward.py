"""Loops over a sequence that differ in what their backward pass stores and recomputes.

Every loop here is called like `jax.lax.scan(step, state, xs)` and returns the same. `step` takes a
DecodeState and one stretch of xs = (e_JxBxcxC, ...), J stretches of c positions, and advances the
state by all c of them. Per stretch, beside what goes in and out of the loop:

  jax.lax.scan   stores all activations, and the caches again: T^2 with full attention
  segments       stores every sqrt(J)-th state, and all activations between two of them at a time;
                 forward work is done twice; little memory where the state is small (a window)
  replay         stores nothing but the caches themselves and what each position replaces: what
                 `advance` appends is never lost, so the backward pass restores each state from its
                 successor; forward work is done twice; the fastest, but no forward-mode derivatives
                 (a custom_vjp)

Forward-mode derivatives (jvp) pass through the first two.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crt_jax.recurrence.state import (
  Carry,
  DecodeState,
  apart,
  is_carry,
  is_slots,
  leaving,
  rewind,
  together,
)
from crt_jax.types import Array

Loop = Callable[[Callable, DecodeState, tuple], tuple[DecodeState, Any]]


def segments(step: Callable, state: DecodeState, xs: tuple) -> tuple[DecodeState, Any]:
  """Scans with a backward pass that recomputes segments of sqrt(J) stretches, one at a time."""
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
  """Scans with a backward pass that walks back from the last state and the final caches.

  Slots behind the position are not read, so an append-only cache serves as the cache of every
  earlier state too; a trailing cache gets back the slots that it dropped.
  """
  e_JxBxcxC, *others_J = xs
  count, _, chunk, _ = e_JxBxcxC.shape
  step, consts = jax.closure_convert(step, state, jax.tree.map(lambda a: a[0], xs))
  position_JxB = state.position_B[None] + chunk * jnp.arange(count, dtype=jnp.int32)[:, None]

  def advanced(live: tuple, e_BxcxC: Array, consts: list[Array], ints: tuple, fixed: tuple):
    """Runs `step` as a function of everything with a gradient: state, embeddings, parameters."""
    position_B, *others = fixed
    caches, carry = together(live, ints)
    before = dataclasses.replace(state, caches=caches, recurrent=carry.value, position_B=position_B)
    after, y = step(before, (e_BxcxC, *others), *consts)
    return *apart((after.caches, Carry(after.recurrent)), _has_gradient), y

  def forward(consts: list[Array], live: tuple, e_JxBxcxC: Array, ints: tuple, fixed_J: tuple):
    def body(state_parts: tuple, x: tuple):
      slots, kept = apart(together(*state_parts), is_slots, is_carry)
      left = leaving(slots, chunk) if state.trailing else None
      live, ints, y = advanced(state_parts[0], x[0], consts, state_parts[1], x[1])
      return (live, ints), (y, (left, kept))

    ends, (y_J, kept_J) = jax.lax.scan(body, (live, ints), (e_JxBxcxC, fixed_J))
    slots, _ = apart(together(*ends), is_slots, is_carry)
    return (*ends, y_J), (consts, slots, kept_J, e_JxBxcxC, fixed_J)

  def backward(residuals: tuple, cotangents: tuple):
    consts, slots, kept_J, e_JxBxcxC, fixed_J = residuals

    def body(carry: tuple, x: tuple):
      slots, dlive, dconsts = carry
      e_BxcxC, fixed, (left, kept), dy = x
      slots = rewind(slots, left) if state.trailing else slots
      live, ints = apart(together(slots, kept), _has_gradient)

      def differentiated(live: tuple, e_BxcxC: Array, consts: list[Array]):
        live, _, y = advanced(live, e_BxcxC, consts, ints, fixed)
        return live, y

      _, pullback = jax.vjp(differentiated, live, e_BxcxC, consts)
      dlive, de_BxcxC, dstep = pullback((dlive, dy))
      return (slots, dlive, jax.tree.map(jnp.add, dconsts, dstep)), de_BxcxC

    dlive, _, dy_J = cotangents
    start = (slots, dlive, jax.tree.map(jnp.zeros_like, consts))
    stored_J = (e_JxBxcxC, fixed_J, kept_J, dy_J)
    (_, dlive, dconsts), de_JxBxcxC = jax.lax.scan(body, start, stored_J, reverse=True)
    return dconsts, dlive, de_JxBxcxC, None, None

  run = jax.custom_vjp(lambda *inputs: forward(*inputs)[0])
  run.defvjp(forward, backward)
  live, ints = apart((state.caches, Carry(state.recurrent)), _has_gradient)
  try:
    live, ints, y_J = run(consts, live, e_JxBxcxC, ints, (position_JxB, *others_J))
  except TypeError as error:
    if 'forward-mode' not in str(error):
      raise
    raise TypeError(
      "backward='replay' has no forward-mode derivatives (jvp); set backward='scan' or 'segments'"
    ) from None
  (caches, carry), position_B = together(live, ints), state.position_B + count * chunk
  return dataclasses.replace(
    state, caches=caches, recurrent=carry.value, position_B=position_B
  ), y_J


def _has_gradient(a: Array) -> bool:
  return jnp.issubdtype(a.dtype, jnp.inexact)


LOOPS = {'replay': replay, 'segments': segments, 'scan': jax.lax.scan}
