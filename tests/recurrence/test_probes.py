"""Power iteration and the gradient probe against explicit Jacobians and gradients, in float64."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax.evaluation.jacobian import jacobian
from crt_jax.recurrence.probes import (
  gradient_probe,
  jacobian_norm,
  loop_statistics,
  spectral_radius,
)
from tests.close import FLOAT64, assert_close

pytestmark = pytest.mark.usefixtures('float64')

CART = dict(name='cart', vocab_size=11, width=16, head_width=8, loops=3, loop_code_width=4)
CART |= dict(prelude_layers=1, short_prelude=True)
CRT = dict(
  name='crt', vocab_size=11, width=8, heads=2, layers=1, depth=4, rotary='integer_reversed'
)


def model_and_data(config, length=5):
  model = crt_jax.build(config)
  params = jax.tree.map(lambda a: 3.0 * a.astype(jnp.float64), model.init(jax.random.key(0)))
  return model, params, jax.random.randint(jax.random.key(1), (1, length), 0, 11)


def explicit_jacobian(step, state):
  flat, unravel = jax.flatten_util.ravel_pytree(state)
  return np.asarray(
    jax.jit(jax.jacfwd(lambda x: jax.flatten_util.ravel_pytree(step(unravel(x)))[0]))(flat)
  )


def test_radius_and_norm_of_a_matrix_with_a_complex_pair():
  angle = 0.7
  block = 1.3 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  matrix = np.zeros((4, 4))
  matrix[:2, :2], matrix[2, 2], matrix[3, 3], matrix[0, 3] = block, 0.9, -0.4, 5.0
  step = lambda x: jnp.asarray(matrix) @ x  # noqa: E731
  x = jnp.zeros(4)
  assert abs(float(spectral_radius(step, x, jax.random.key(0), 400)) - 1.3) < 0.01
  norm = np.linalg.norm(matrix, 2)
  np.testing.assert_allclose(jacobian_norm(step, x, jax.random.key(0), 40), norm, rtol=1e-6)


def test_a_frozen_anchor_gives_each_position_its_own_radius():
  model, params, tokens = model_and_data(CART)
  step, ring, axes = model.recurrent_map(params, tokens)
  assert axes == (-1,) and len(ring) == 3
  matrix = explicit_jacobian(step, ring)
  length, width = 5, 16
  blocks = matrix.reshape(3, length, width, 3, length, width)
  own = [blocks[:, t, :, :, t].reshape(3 * width, 3 * width) for t in range(length)]
  for t in range(length):
    assert np.abs(np.delete(blocks[:, t], t, axis=3)).max() == 0
  expected = [np.abs(np.linalg.eigvals(block)).max() for block in own]
  radius = jax.jit(lambda ring: spectral_radius(step, ring, jax.random.key(0), 200, axes))(ring)
  np.testing.assert_allclose(radius[0], expected, rtol=0.01)


def test_the_map_of_a_crt_is_nilpotent():
  model, params, tokens = model_and_data(CRT)
  step, x_BxTxC, axes = model.recurrent_map(params, tokens)
  matrix = explicit_jacobian(step, x_BxTxC)
  assert np.abs(np.linalg.matrix_power(matrix, 5)).max() < 1e-9 * np.abs(matrix).max() ** 5
  assert axes is None
  norm = jax.jit(lambda x: jacobian_norm(step, x, jax.random.key(0), 60))(x_BxTxC)
  np.testing.assert_allclose(norm, np.linalg.norm(matrix, 2), rtol=1e-3)


@pytest.mark.parametrize('config', [CART, CRT], ids=['cart', 'crt'])
def test_the_recurrent_map_is_the_last_pass(config):
  model, params, tokens = model_and_data(config)
  step, state, _ = model.recurrent_map(params, tokens, 2)
  nxt, _ = model.recurrent_map(params, tokens, 3)[1:]
  assert_close(step(state), nxt, FLOAT64)


def test_jacobian_reports_both_kinds_of_model():
  for config in (CART, CRT):
    model, params, tokens = model_and_data(config)
    found = jacobian(model, params, tokens, iterations=4)
    assert all(np.isfinite(value) for value in found.values())
    assert 0 < found['jacobian_radius'] <= found['jacobian_radius_max']


def test_a_transformer_has_no_recurrence():
  model = crt_jax.build(
    dict(name='transformer', vocab_size=11, width=8, heads=2, layers=1, rotary='standard')
  )
  with pytest.raises(ValueError, match='no recurrent passes'):
    model.recurrent_map({}, None)


@pytest.mark.parametrize('config', [CART, CRT], ids=['cart', 'crt'])
def test_probes_give_the_gradient_norm_at_every_state(config):
  """Against a perturbation of the state that the last pass reads, differentiated by hand."""
  model, params, tokens = model_and_data(config)
  batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1))
  probe_R = jnp.zeros(model.probes())
  loss = jax.jit(jax.value_and_grad(lambda p: model.loss(params, batch, probe_R=p), has_aux=True))
  (total, metrics), squares_R = loss(probe_R)
  plain, _ = jax.jit(model.loss)(params, batch)
  np.testing.assert_allclose(total, plain, rtol=1e-12)
  assert metrics['residual'].shape == metrics['state_rms'].shape == squares_R.shape
  assert (np.asarray(squares_R) > 0).all()
  if config is CRT:
    recurrence, x = model.recurrence(params), model.recurrent_map(params, tokens)[1]

    def last_loss(x_BxTxC):
      z_BxTxC, _ = recurrence.block(x_BxTxC, None, None)
      return token_loss(model.head(params, z_BxTxC), batch['targets'])
  else:
    parts = model.parts(params)
    step, ring, _ = model.recurrent_map(params, tokens)
    x = step(ring)[0]

    def last_loss(h_BxTxC):
      return token_loss(model.head(params, parts.coda(h_BxTxC)[0]), batch['targets'])

  np.testing.assert_allclose(squares_R[-1], jnp.sum(jax.grad(last_loss)(x) ** 2), rtol=1e-10)


def token_loss(logits, targets):
  picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
  return -picked.mean()


def test_statistics_of_a_step():
  found = loop_statistics(jnp.array([3.0, 4.0]), jnp.array([3.0, 0.0]))
  np.testing.assert_allclose([found['residual'], found['state_rms']], [0.8, 12.5**0.5])


def test_the_probe_changes_nothing_else():
  f = lambda x, p: jnp.sum(jnp.sin(gradient_probe(x, p)))  # noqa: E731
  x = jnp.arange(3.0)
  gradient, square = jax.grad(f, argnums=(0, 1))(x, jnp.zeros(()))
  np.testing.assert_allclose(gradient, np.cos(x))
  np.testing.assert_allclose(square, np.sum(np.cos(x) ** 2))
  batched = jax.vmap(jax.grad(functools.partial(f), argnums=1), in_axes=(0, None))
  np.testing.assert_allclose(batched(x[:, None], jnp.zeros(())), np.cos(x) ** 2)
