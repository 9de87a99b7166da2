"""What is particular to a CART: which loops training draws and which of them have a gradient."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contract.models import model_of, params_of, tokens_of


def test_drawn_loops_are_a_function_of_seed_and_step():
  model = model_of('cart', loops=5, loops_min=2)
  assert model.depths() == (2, 3, 4, 5)
  drawn = [model.depth_at(42, step) for step in range(2000)]
  assert drawn == [model.depth_at(42, step) for step in range(2000)]
  assert drawn != [model.depth_at(43, step) for step in range(2000)]
  counts = collections.Counter(drawn)
  assert set(counts) == {2, 3, 4, 5} and min(counts.values()) > 430
  assert model.resolve_depth(None) == 5  # evaluation takes the configured R
  fixed = model_of('cart', loops=5)
  assert fixed.depths() == (5,) and {fixed.depth_at(1, step) for step in range(9)} == {5}


def test_a_truncated_gradient_is_that_of_the_last_loops():
  """The same value as with all; what the gradient is, tests/recurrence/test_depth_loop.py says."""
  full, truncated = model_of('cart'), model_of('cart', backprop_loops=2)
  params, tokens = params_of(full), tokens_of(full)
  batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1))

  def gradient(model, depth):
    return jax.jit(jax.value_and_grad(lambda p: model.loss(p, batch, depth)[0]))(params)

  for depth in (2, 3):
    value, found = gradient(truncated, depth)
    expected, whole = gradient(full, depth)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    same = np.allclose(
      found['core']['attention']['q']['weight'],
      whole['core']['attention']['q']['weight'],
      rtol=1e-4,
      atol=1e-7,
    )
    assert same == (depth == 2)
  for name in ('prelude', 'embedding', 'anchor', 'core', 'coda', 'gate', 'blend', 'loop_code'):
    assert all(np.any(a) for a in jax.tree.leaves(found[name])), name


@pytest.mark.parametrize('layers', [0, 1])
def test_a_short_prelude_runs(layers):
  model = model_of('cart', prelude_layers=layers, short_prelude=True)
  params, tokens = params_of(model), tokens_of(model)
  logits = jax.jit(model.apply)(params, tokens).logits_BxTxV
  np.testing.assert_allclose(logits, model.sequential(params, tokens), rtol=2e-4, atol=2e-5)


def test_dense_layers_with_a_latent_are_those_of_the_prelude():
  cart, dense = model_of('cart'), model_of('cart_dense_latent', head_width=8, heads=0)
  params, tokens = params_of(cart), tokens_of(cart)
  e_BxTxC, _ = cart.parts(params).prelude(cart.parts(params).embed(tokens))
  own = dict(layers=params['prelude'], embedding=params['embedding'])
  np.testing.assert_array_equal(dense.hidden(own, tokens).hidden_BxTxC, e_BxTxC)
