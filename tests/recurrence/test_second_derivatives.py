"""Second derivatives of every driver and estimator, and forward-mode where there is one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax.recurrence.estimators import implicit
from crt_jax.recurrence.passes import sequential as exact_passes
from tests.recurrence.scaled import BASE, largest_gap, params_of, tokens_of

pytestmark = pytest.mark.usefixtures('float64')

LENGTH = 3
CART = dict(name='cart', vocab_size=11, width=8, head_width=4, loops=3, loop_code_width=4)
CART |= dict(prelude_layers=1, short_prelude=True)
SEQUENTIAL = dict(driver='sequential')
CHUNKED = dict(driver='chunked', chunk=2, depth=2, window=2)
FORWARD = {  # with forward-mode derivatives
  'unroll': dict(depth=3),
  'scan': SEQUENTIAL | dict(backward='scan'),
  'segments': SEQUENTIAL | dict(backward='segments'),
  'chunked_scan': CHUNKED | dict(backward='scan'),
  'chunked_segments': CHUNKED | dict(backward='segments'),
  'truncated_scan': SEQUENTIAL | dict(backward='scan', gradient='truncated', gradient_reach=2),
  'truncated_segments': CHUNKED | dict(backward='segments', gradient='truncated', gradient_reach=2),
  'last_passes': dict(depth=3, gradient='last_passes', gradient_reach=2),
  'cart': CART,
  'cart_backprop': CART | dict(backprop_loops=2),
}
REVERSE = {  # without
  'replay': SEQUENTIAL,
  'replayed_chunks': CHUNKED,
  'truncated_replay': SEQUENTIAL | dict(gradient='truncated', gradient_reach=2),
  'implicit': dict(depth=2, gradient='implicit', gradient_reach=2),
  'implicit_corrected': dict(depth=2, gradient='implicit', gradient_reach=2, start='corrected'),
}
# What counts as given does so in second derivatives too: no differences of gradients.
CONSTANTS = ('truncated', 'last_passes', 'cart_backprop')
FAST = ('replay', 'implicit', 'cart_backprop')


def mostly_slow(names):
  return [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in names]


def problem(name):
  """The loss as a function of the parameters, parameters, and a direction."""
  model = crt_jax.build(BASE | (FORWARD | REVERSE)[name] if 'cart' not in name else FORWARD[name])
  batch = dict(tokens=tokens_of(length=LENGTH), targets=tokens_of(length=LENGTH, seed=1))
  return lambda p: model.loss(p, batch)[0], params_of(model), params_of(model, seed=1)


def dot(one, other):
  return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, one, other)))


@pytest.mark.parametrize('name', mostly_slow(FORWARD))
def test_forward_mode_is_the_gradient(name):
  loss, params, direction = problem(name)

  @jax.jit
  def both(params, direction):
    value, linear = jax.linearize(loss, params)
    return jax.jvp(loss, (params,), (direction,)), (value, linear(direction))

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  for found in both(params, direction):
    assert largest_gap(found, (value, dot(gradient, direction))) < 1e-9


def test_implicit_has_no_forward_mode():
  loss, params, direction = problem('implicit')
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jit(lambda *at: jax.jvp(loss, at[:1], at[1:]))(params, direction)


@pytest.mark.parametrize('name', mostly_slow(FORWARD | REVERSE))
def test_products_with_the_hessian(name):
  """Forward over reverse is the difference of two gradients, reverse over reverse its transpose;
  they are equal, as a Hessian is symmetric, unless the gradient is that of no function."""
  loss, params, direction = problem(name)
  gradient = jax.jit(jax.grad(loss))
  other = gradient(direction)

  @jax.jit
  def products(params, direction):
    forward = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
    return forward, jax.grad(lambda p: dot(jax.grad(loss)(p), other))(params)

  forward, reverse = products(params, direction)
  np.testing.assert_allclose(dot(reverse, direction), dot(other, forward), rtol=1e-9)
  if not name.startswith(CONSTANTS):
    step = 1e-5
    ahead, behind = (
      gradient(jax.tree.map(lambda p, d, s=sign * step: p + s * d, params, direction))
      for sign in (1, -1)
    )
    difference = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    assert largest_gap(forward, difference) < 1e-6


def test_the_hessian_of_implicit_is_exact_where_its_gradient_is():
  """By the embeddings, whose map to the first input counts: K > T passes, T reverse passes."""
  model = crt_jax.build(BASE)
  params, tokens = params_of(model), tokens_of(batch=1, length=2)
  recurrence, e_BxTxC = model.recurrence(params), model.parts(params).embed(tokens)
  exact = crt_jax.build(BASE | SEQUENTIAL | dict(backward='scan'))

  def of(passes):
    return lambda e_BxTxC: jnp.sum(jnp.sin(passes(e_BxTxC)))

  def sequential(e_BxTxC):
    state = exact.training_state(e_BxTxC)
    arguments = (recurrence, exact.read, state, e_BxTxC, None, None, jax.lax.scan)
    return exact_passes(*arguments)[1]

  solved = of(lambda e: implicit(recurrence, e, 3, 2).z_BxTxC)
  expected = jax.jit(jax.hessian(of(sequential)))(e_BxTxC)
  for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
    assert largest_gap(jax.jit(hessian(solved))(e_BxTxC), expected) < 1e-10


@pytest.mark.parametrize('start', ('embedding', 'corrected'))
def test_the_gradient_of_implicit_by_the_embeddings_is_differentiated_as_it_is(start):
  """Before the passes have converged it depends on the first input as well."""
  model = crt_jax.build(BASE)
  params, tokens = params_of(model), tokens_of(batch=1)
  recurrence, e_BxTxC = model.recurrence(params), model.parts(params).embed(tokens)
  solver = functools.partial(implicit, recurrence, depth=2, reverse=2, start=start)
  gradient = jax.jit(jax.grad(lambda e_BxTxC: jnp.sum(jnp.sin(solver(e_BxTxC).z_BxTxC))))
  direction = jnp.asarray(np.random.default_rng(3).standard_normal(e_BxTxC.shape))
  found = jax.jit(lambda e, d: jax.jvp(gradient, (e,), (d,))[1])(e_BxTxC, direction)
  step = 1e-5
  difference = gradient(e_BxTxC + step * direction) - gradient(e_BxTxC - step * direction)
  assert largest_gap(found, difference / (2 * step)) < 1e-6
