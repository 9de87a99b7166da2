"""Measures a recurrence's effect on its state: residuals, gradient norms and the true Jacobian.

A recurrence is any function from a state (an array or a tree of arrays) to the next one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from crt_jax.recurrence.state import varying_as
from crt_jax.types import Array, Tree


def loop_statistics(new: Array, old: Array) -> dict[str, Array]:
  """Returns scalars of one step of a recurrence, whose state goes from `old` to `new`.

  Returns: 'residual', ||new - old|| / ||new||, and 'state_rms', the root mean square of `new`.
  """
  norm = jnp.linalg.norm
  return dict(residual=norm(new - old) / norm(new), state_rms=norm(new) / new.size**0.5)


def gradient_probe(x: Array, probe: Array) -> Array:
  """Returns x; the gradient with respect to the scalar `probe` is ||dL/dx||^2.

  So a loop reports the norm of the gradient at each of its states without storing any of them.
  """
  return _probed(x, varying_as(x, probe))


@jax.custom_vjp
def _probed(x: Array, probe: Array):
  del probe
  return x


def _probe_forward(x: Array, probe: Array):
  return x, probe


def _probe_backward(probe: Array, gradient: Array):
  return gradient, jnp.sum(jnp.square(gradient)).astype(probe.dtype)


_probed.defvjp(_probe_forward, _probe_backward)


def jacobian_norm(step: Callable, state: Tree, key: Array, iterations: int = 20) -> Array:
  """Returns the largest singular value of the Jacobian of `step`, by power iteration on J^T J.

  It is a lower bound that more iterations tighten.

  Args:
    step: state -> state, a pytree of arrays of the same shapes.
    key: of the random start.
  """
  _, pull = jax.vjp(step, state)

  def iterate(vector: Tree, _: None):
    pushed = jax.jvp(step, (state,), (vector,))[1]
    (back,) = pull(pushed)
    return _normalised(back, None)[0], _norm(pushed, None)

  start = _normalised(_random_like(state, key), None)[0]
  _, norms = jax.lax.scan(iterate, start, None, length=iterations)
  return norms[-1]


def spectral_radius(
  step: Callable, state: Tree, key: Array, iterations: int = 60, axes: tuple[int, ...] | None = None
) -> Array:
  """Returns the spectral radius of the Jacobian of `step` at `state`: growth per application.

  The growth is the geometric mean over the second half of the iterations, which also holds where
  the dominant eigenvalues are a complex pair. Of a nilpotent Jacobian, such as a CRT's, whose
  spectral radius is 0, it is the transient growth over so many applications.

  Args:
    axes: the axes of every array over which a vector extends; the others count separate Jacobians,
      as for a map that acts on each position alone. None: one Jacobian over everything.

  Returns: a scalar, or one radius for each separate Jacobian.
  """

  def iterate(vector: Tree, _: None):
    pushed = jax.jvp(step, (state,), (vector,))[1]
    pushed, norm = _normalised(pushed, axes)
    return pushed, jnp.log(norm)

  start, _ = _normalised(_random_like(state, key), axes)
  _, growth = jax.lax.scan(iterate, start, None, length=iterations)
  return jnp.exp(jnp.mean(growth[iterations // 2 :], axis=0))


def _norm(tree: Tree, axes: tuple[int, ...] | None) -> Array:
  squares = (jnp.sum(jnp.square(x), axis=axes) for x in jax.tree.leaves(tree))
  return jnp.sqrt(sum(squares))


def _normalised(tree: Tree, axes: tuple[int, ...] | None) -> tuple:
  """Returns the tree divided by its norm, and the norm; a zero tree stays zero."""
  norm = _norm(tree, axes)
  scale = 1 / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
  if axes is not None:
    scale = jnp.expand_dims(scale, axes)
  return jax.tree.map(lambda x: x * scale, tree), norm


def _random_like(tree: Tree, key: Array):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(key, len(leaves))
  drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, drawn)
