"""Cross-entropy and its gradient against JAX's own softmax, in the forms of every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.models import loss
from tests.close import FLOAT64, assert_close

FORMS = (loss._in_one_pass, loss._in_two_passes)


def plain(logits, targets):
  """The sum over counted targets by plain differentiation."""
  log_shares = jax.nn.log_softmax(logits, axis=-1)
  picked = jnp.take_along_axis(log_shares, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
  return -jnp.sum(jnp.where(targets >= 0, picked, 0))


@pytest.mark.parametrize('rows', (1, 2, 3))
@pytest.mark.parametrize('form', FORMS)
def test_loss_and_its_derivatives(form, rows, monkeypatch):
  monkeypatch.setattr(loss, '_largest_and_total', form)
  generator = np.random.default_rng(rows)
  with jax.enable_x64(True):
    logits = jnp.asarray(30 * generator.standard_normal((rows, 5, 97)))
    targets = jnp.asarray(generator.integers(-1, 97, (rows, 5)).astype(np.int32))
    for derivative in (lambda f: f, jax.grad, jax.jacfwd):
      found, expected = (derivative(f)(logits, targets) for f in (loss._summed, plain))
      assert found.dtype == jnp.float64
      assert_close(found, expected, FLOAT64)


@pytest.mark.parametrize('form', FORMS)
def test_second_derivatives_under_jit_and_in_a_scan(form, monkeypatch):
  monkeypatch.setattr(loss, '_largest_and_total', form)
  targets = jnp.array([[1], [3]])

  def scanned(total):
    return lambda logits: jax.lax.scan(lambda sum, x: (sum + total(*x), None), 0.0, logits)[0]

  with jax.enable_x64(True):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1, 5)))
    found, expected = (
      jax.jit(jax.hessian(lambda logits, f=f: scanned(f)((logits, targets))))(logits)
      for f in (loss._summed, plain)
    )
    assert_close(found, expected, FLOAT64)


@pytest.mark.parametrize('form', FORMS)
def test_logits_far_from_zero(form):
  """exp overflows at 89 in float32; an impossible token has -inf."""
  logits = jnp.array([[1e4, 1e4 - 1, 0], [-1e4, -1e4, -jnp.inf], [-jnp.inf, 3, -jnp.inf]])
  largest, total = form(logits)
  np.testing.assert_array_equal(largest, [1e4, -1e4, 3])
  np.testing.assert_allclose(total, [1 + np.exp(-1), 2, 1], rtol=1e-6)


@pytest.mark.parametrize('platform, reductions', (('cuda', 1), ('cpu', 2)))
def test_a_gpu_reads_logits_once(platform, reductions):
  logits = jax.ShapeDtypeStruct((2, 97), jnp.float32)
  lowered = jax.jit(loss._log_normaliser).trace(logits).lower(lowering_platforms=(platform,))
  assert lowered.as_text().count('stablehlo.reduce') == reductions
