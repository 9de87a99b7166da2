"""What is particular to a CART: its switches, which loops training draws and which have a
gradient."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax import decoding
from crt_jax.decoding.prepare import empty_state
from crt_jax.models.cart_loop import loop_codes
from tests.close import FLOAT32, FLOAT64, assert_close, gap
from tests.contract.models import LENGTH, model_of, params_of, tokens_of


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
    of_core = gap(found['core']['attention']['q'], whole['core']['attention']['q'])
    assert (of_core < FLOAT32) == (depth == 2)
  for name in ('prelude', 'embedding', 'anchor', 'core', 'coda', 'gate', 'blend', 'loop_code'):
    assert all(np.any(a) for a in jax.tree.leaves(found[name])), name


SWITCHES = {
  'base': {},
  'per_loop_anchor': dict(anchor='per_loop'),
  'one_loop': dict(loops=1),
  'unshared': dict(share_core=False),
  'self': dict(core='self'),
  'self_unshared': dict(core='self', share_core=False),
  'no_blend': dict(blend=False),
  'no_gate': dict(gate=False),
  'no_loop_code': dict(loop_code=False),
  'no_core_residual': dict(gate=False, core_residual=False),
  'full_rank': dict(latent_ratio=0),
  'anchor_norm': dict(anchor_norm=True),
  'history_2': dict(history=2),
  'loops_18': dict(loops=18),
}


@functools.cache
def switched(name):
  """A small CART with one switch, float64 parameters, rows that differ from the first at one
  position (row i + 1 at position i), and logits of the full forward pass."""
  model = model_of('cart', prelude_layers=1, short_prelude=True, **SWITCHES[name])
  params, row = params_of(model, dtype='float64'), tokens_of(model, batch=1)
  other = (row + 1) % model.config.vocab_size
  rows = jnp.concatenate([row, jnp.where(jnp.eye(LENGTH, dtype=bool), other, row)])
  return model, params, rows, np.asarray(jax.jit(model.apply)(params, rows).logits_BxTxV)


@pytest.mark.parametrize('name', SWITCHES)
def test_no_switch_lets_a_position_see_a_later_one(name, float64):
  logits = switched(name)[-1]
  for position, changed in enumerate(logits[1:]):
    np.testing.assert_allclose(changed[:position], logits[0, :position], rtol=1e-10, atol=1e-10)
    assert np.abs(changed[position:] - logits[0, position:]).max(axis=-1).min() > 1e-3


@pytest.mark.parametrize('name', SWITCHES)
def test_cached_decoding_is_the_full_forward_with_every_switch(name, float64):
  model, params, rows, logits = switched(name)
  state, step = model.decode_state(len(rows), LENGTH), jax.jit(model.step)
  for t in range(LENGTH):
    state, found = step(params, state, rows[:, t])
    assert_close(found, logits[:, t], FLOAT64)


def test_the_loops_of_a_token_are_written_out():
  model = model_of('cart')
  params = params_of(model)
  _, prepared = decoding.prepare(model, params)
  state = empty_state(model, prepared, 1, 4)
  text = jax.jit(model.hidden).lower(params, tokens_of(model)).as_text()
  token = jax.jit(model.step).lower(prepared, state, jnp.zeros(1, jnp.int32)).as_text()
  assert 'stablehlo.while' in text and 'stablehlo.while' not in token


def test_codes_of_any_loop():
  """Beyond the 16 rows of the published table too (cart.md 2.6)."""
  codes = loop_codes(20, 32, jnp.float32)
  np.testing.assert_array_equal(codes[0], [0, 1] * 16)
  j, r = np.arange(16), 19
  angle = r * 10000.0 ** (-2 * j / 32)
  np.testing.assert_allclose(codes[r, 0::2], np.sin(angle), atol=1e-5)
  np.testing.assert_allclose(codes[r, 1::2], np.cos(angle), atol=1e-5)


def test_an_unshared_core_has_no_further_loops():
  model = model_of('cart', share_core=False)
  assert model.resolve_depth(2) == 2
  with pytest.raises(ValueError, match='depth=4: an unshared core has only model.loops=3 blocks'):
    model.decode_state(1, 4, depth=4)


def test_an_anchor_of_another_length_is_refused():
  model = model_of('cart')
  parts = model.parts(params_of(model))
  given = parts.anchor(jnp.ones((1, 5, 16)))
  with pytest.raises(ValueError, match='given: an anchor of 5 positions does not fit u_BxTxC of 7'):
    parts.core(jnp.ones((1, 7, 16)), given=given)


@pytest.mark.parametrize('layers', [0, 1])
def test_a_short_prelude_runs(layers):
  model = model_of('cart', prelude_layers=layers, short_prelude=True)
  params, tokens = params_of(model), tokens_of(model)
  logits = jax.jit(model.apply)(params, tokens).logits_BxTxV
  assert_close(logits, model.sequential(params, tokens), FLOAT32)


def test_dense_layers_with_a_latent_are_those_of_the_prelude():
  cart, dense = model_of('cart'), model_of('cart_dense_latent', head_width=8, heads=0)
  params, tokens = params_of(cart), tokens_of(cart)
  e_BxTxC, _ = cart.parts(params).prelude(cart.parts(params).embed(tokens))
  own = dict(layers=params['prelude'], embedding=params['embedding'])
  np.testing.assert_array_equal(dense.hidden(own, tokens).hidden_BxTxC, e_BxTxC)
