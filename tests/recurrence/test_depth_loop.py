"""The recurrence along depth against a loop written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.recurrence.depth_loop import depth_loop
from crt_jax.recurrence.scan import scan_of
from tests.close import FLOAT64, assert_close

DEPTH, HISTORY = 5, 3


def step(weights, ring, r, shift):
  """One loop: a map of the whole ring, of the loop's index and of its own array."""
  mixed = sum((0.5 + i) * h for i, h in enumerate(ring))
  h = jnp.tanh(mixed @ weights + r + shift[None, None])
  return h, dict(seen=h)


def by_hand(weights, start, shifts, backprop):
  ring = [start] * HISTORY
  states = []
  for r in range(DEPTH):
    if backprop and 0 < r == DEPTH - backprop:
      ring = [jax.lax.stop_gradient(h) for h in ring]
    h, _ = step(weights, ring, r, shifts[r])
    ring = [h, *ring[:-1]]
    states.append(h)
  return h, jnp.stack(states)


@pytest.fixture
def arguments(float64):
  draw = np.random.default_rng(0).standard_normal
  return 0.3 * draw((4, 4)), draw((2, 3, 4)), draw((DEPTH, 4))


def looped(weights, start, shifts, backprop, remat):
  def one(ring, r, shift):
    return step(weights, ring, r, shift)

  ring, collected, _ = depth_loop(
    one, start, DEPTH, HISTORY, shifts, scan_of(remat), backprop=backprop
  )
  return ring[0], collected


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('backprop', [0, 1, 2, 4, 5, 9])
def test_value_and_gradient_are_those_of_the_loop_written_out(arguments, backprop, remat):
  def scalar(function):
    return lambda *given: jnp.sum(jnp.cos(function(*given)[0]))

  expected = by_hand(*arguments, backprop)
  last, collected = looped(*arguments, backprop, remat)
  assert_close(last, expected[0], FLOAT64)
  assert_close(collected['seen'], expected[1], FLOAT64)
  found, wanted = (
    jax.grad(scalar(function), argnums=(0, 1, 2))(*arguments)
    for function in (
      lambda *given: looped(*given, backprop, remat),
      lambda *given: by_hand(*given, backprop),
    )
  )
  assert_close(found, wanted, FLOAT64)
  constant = max(DEPTH - backprop, 0) if backprop else 0
  assert not np.any(found[2][:constant]) and np.all(found[2][constant:])
  assert np.any(found[1]) == (constant == 0)
