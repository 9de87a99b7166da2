"""Gradient estimators: exact values, with part of the gradient left out.

  full          any driver of passes.py as it is: every path from a parameter to the loss
  truncated     ignores what a stretch of positions owes to the ones before it
  last_passes   ignores how the first passes came to their result
  implicit      ignores that the passes have not converged, and paths through more corrections than
                it makes reverse passes

Each composes with jit, grad, vmap and float64; `truncated` over `jax.lax.scan` or `segments`, and
`last_passes`, also with jvp.
"""

from collections.abc import Callable

import jax

from crt_jax.recurrence.backward import Loop, in_stretches
from crt_jax.recurrence.passes import Before, Passes, Recurrence, one_pass, unroll
from crt_jax.recurrence.state import DecodeState
from crt_jax.types import Array


def truncated(loop: Loop, length: int) -> Loop:
  """Returns a loop that cuts the gradient at every `length`-th step (truncated backpropagation).

  The state at the start of a stretch, summary and caches, is treated as a constant, so a target
  learns from at most `length` steps back, on average from half as many. The values stay exact.
  """

  def run(step: Callable, state: DecodeState, xs: tuple):
    def one_stretch(state: DecodeState, xs: tuple):
      return loop(step, jax.lax.stop_gradient(state), xs)

    return in_stretches(one_stretch, state, xs, length)

  return run


def last_passes(
  recurrence: Recurrence,
  e_BxTxC: Array,
  depth: int,
  last: int,
  start: str = 'embedding',
  key: Array | None = None,
) -> Passes:
  """Runs `unroll` with a gradient through only the last `last` of `depth` passes.

  1 <= last <= depth. The summaries and inputs that the earlier passes end with are treated as
  constants, as in a truncated recurrence; they are corrected `last` times, so embeddings,
  correction and block learn even from one pass.
  """
  if last == depth:
    return unroll(recurrence, e_BxTxC, depth, start, key)
  first = depth - last
  earlier = unroll(recurrence, jax.lax.stop_gradient(e_BxTxC), first, start, key)
  given = jax.lax.stop_gradient((earlier.summary, earlier.x_BxTxC))
  return unroll(recurrence, e_BxTxC, last, start, key, before=Before(first, *given))


def implicit(
  recurrence: Recurrence,
  e_BxTxC: Array,
  depth: int,
  reverse: int,
  start: str = 'embedding',
) -> Passes:
  """Runs `unroll` with the gradient of a fixed point, by `reverse` >= 1 reverse passes.

  With x = G(x), the gradient of the loss at x is pulled back through the sum of the first `reverse`
  powers of the transposed Jacobian of G, all at the last input; the memory is that of one pass,
  whatever `depth` is. It equals exact backpropagation if the passes are exact and reverse >= T.
  Dropout is not supported: masks that change from pass to pass leave no fixed point.
  """

  def refined(x_BxTxC: Array, e_BxTxC: Array):
    return one_pass(recurrence, e_BxTxC, x_BxTxC, None, (None,) * 3)[2]

  refined, consts = jax.closure_convert(refined, e_BxTxC, e_BxTxC)

  def solve(consts: list[Array], e_BxTxC: Array, x_BxTxC: Array):
    def refine(x_BxTxC: Array, _: None):
      return refined(x_BxTxC, e_BxTxC, *consts), None

    return jax.lax.scan(refine, x_BxTxC, length=depth - 1)[0]

  def forward(consts: list[Array], e_BxTxC: Array, x_BxTxC: Array):
    x_BxTxC = solve(consts, e_BxTxC, x_BxTxC)
    return x_BxTxC, (consts, e_BxTxC, x_BxTxC)

  def backward(residuals: tuple, dx_BxTxC: Array):
    consts, e_BxTxC, x_BxTxC = residuals
    _, pull = jax.vjp(lambda x, e, c: refined(x, e, *c), x_BxTxC, e_BxTxC, consts)

    def add_power(total_BxTxC: Array, _: None):
      return dx_BxTxC + pull(total_BxTxC)[0], None

    total_BxTxC, _ = jax.lax.scan(add_power, dx_BxTxC, length=reverse - 1)
    _, de_BxTxC, dconsts = pull(total_BxTxC)
    return dconsts, de_BxTxC, None

  fixed_point = jax.custom_vjp(solve)
  fixed_point.defvjp(forward, backward)
  first_BxTxC = unroll(recurrence, e_BxTxC, 1, start).x_BxTxC
  x_BxTxC = fixed_point(consts, e_BxTxC, first_BxTxC)
  z_BxTxC, s, x_next_BxTxC, _ = one_pass(recurrence, e_BxTxC, x_BxTxC, None, (None,) * 3)
  return Passes(z_BxTxC, x_BxTxC, x_next_BxTxC, s, {}, {})
