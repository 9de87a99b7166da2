"""The Jacobian of a model's recurrence at real text."""

import functools

import jax

from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.recurrence.probes import jacobian_norm, spectral_radius
from crt_jax.types import Array, Params

ROWS = 1  # of a batch: power iteration differentiates the recurrence some hundred times


@functools.partial(jax.jit, static_argnames=('model', 'iterations'))
def jacobian(model: Model, params: Params, tokens_BxT: Array, iterations: int = 40) -> dict:
  """Returns growth and norm of the last pass's Jacobian, at the first row of a batch.

  Args:
    model: one with a recurrence (`model.recurrent_map`).

  Returns: 'jacobian_radius' and 'jacobian_radius_max', the spectral radius, its mean and largest
    value over positions where each has its own (a CART's frozen anchor); of a CRT it is the growth
    over `iterations` passes of a map whose true radius is 0. 'jacobian_norm', the largest singular
    value.
  """
  step, state, axes = model.recurrent_map(params, tokens_BxT[:ROWS])
  radius = spectral_radius(step, state, random_key(0), iterations, axes)
  norm = jacobian_norm(step, state, random_key(1), iterations)
  return dict(jacobian_radius=radius.mean(), jacobian_radius_max=radius.max(), jacobian_norm=norm)
