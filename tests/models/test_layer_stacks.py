"""A CRT over another stack than its own layers: a CART's body, or what a user has written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax import accounting, decoding
from crt_jax.models.crt import CRT
from crt_jax.recurrence.state import Carry
from tests.close import FLOAT64, assert_close
from tests.contract.models import CONFIGS, model_of, params_of, tokens_of
from tests.contract.odd_state import LSTM
from tests.recurrence.scaled import largest_gap, loss_and_gradient

pytestmark = pytest.mark.usefixtures('float64')
LENGTH = 5


@functools.cache
def prepared(name):
  """Model, float64 parameters, tokens, exact logits; 'lstm' has no layer but an LSTM."""
  model = over_lstm() if name == 'lstm' else model_of(name)
  params, tokens = params_of(model, dtype='float64'), tokens_of(model, length=LENGTH)
  return model, params, tokens, model.sequential(params, tokens)


def over_lstm(**changes):
  return CRT(crt_jax.build(CONFIGS['crt'] | changes).config, make_block=LSTM)


@pytest.mark.parametrize('name', ('crt_cart', 'crt_cart_per_loop', 'odd_state', 'lstm'))
def test_passes_are_exact_from_the_declared_depth_on_and_no_earlier(name):
  """In float64: position t from K = t + 2 passes on."""
  model, params, tokens, exact = prepared(name)
  apply = jax.jit(model.apply, static_argnames='depth')
  for depth in (LENGTH - 1, LENGTH + 1):
    gap_T = np.abs(apply(params, tokens, depth=depth).logits_BxTxV - exact).max(axis=(0, 2))
    assert (gap_T[: depth - 1] < 1e-10).all()
    assert (gap_T[depth - 1 :] > 1e-10).all()


def test_one_pass_over_a_cart_is_the_body_of_that_cart():
  model, params, tokens, _ = prepared('crt_cart')
  shared = {k: v for k, v in CONFIGS['crt_cart'].items() if k not in ('block', 'depth')}
  cart = crt_jax.build(shared | dict(name='cart'))
  ends = dict(embedding=params['embedding'], final_norm=None)
  expected = cart.hidden(params['layers'] | ends, tokens).hidden_BxTxC
  assert_close(model.hidden(params, tokens, depth=1).hidden_BxTxC, expected, FLOAT64)


@pytest.mark.parametrize('name', ('odd_state', 'lstm'))
def test_rows_that_have_ended_keep_their_state(name):
  model, params, tokens, exact = prepared(name)
  empty = model.decode_state(2, LENGTH)
  state, _ = model.prefill(params, empty, tokens, np.array([3, LENGTH]), chunk=2)
  again, logits_BxV = model.prefill(params, state, tokens[:, 3:4], np.array([1, 0]), chunk=2)
  assert_close(logits_BxV[0], exact[0, 3], FLOAT64)
  for before, after in zip(*map(jax.tree.leaves, (state, again)), strict=True):
    axis = int(before.ndim > 4)  # caches of layers have these before the rows
    found, expected = (np.take(np.asarray(a), 1, axis) for a in (after, before))
    np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(state.position_B, [3, LENGTH])


def test_a_state_without_slots_is_never_full():
  model, params, _, _ = prepared('lstm')
  state = model.decode_state(2, 1)
  assert state.capacity is None and isinstance(state.caches['block'], Carry)
  tokens = tokens_of(model, length=LENGTH)
  state, _ = model.prefill(params, state, tokens)
  _, logits_BxV = model.step(params, state, tokens[:, 0])
  longer = model.sequential(params, jnp.concatenate([tokens, tokens[:, :1]], axis=1))
  assert_close(logits_BxV, longer[:, -1], FLOAT64)
  _, whole = decoding.prepare(model, params)
  greedy = decoding.Sampling(temperature=0)
  found = decoding.generate(model, whole, [[1, 2, 3], [4]], 6, context=16, sampling=greedy)
  for prompt, text in zip(([1, 2, 3], [4]), found, strict=True):
    logits = model.sequential(params, jnp.array([prompt + text]))[0]
    np.testing.assert_array_equal(text, np.argmax(logits, -1)[len(prompt) - 1 : -1])


@pytest.mark.parametrize('driver', ('sequential', 'chunked'))
@pytest.mark.parametrize('backward', ('replay', 'segments'))
def test_backward_passes_restore_every_state(driver, backward):
  """Integers and pairs too, behind a window whose caches move on, and with a gradient that is
  that of the exact form where the passes are exact."""
  changes = dict(driver=driver, window=3) | (dict(chunk=2) if driver == 'chunked' else {})
  _, params, tokens, _ = prepared('odd_state')
  run = lambda **fields: loss_and_gradient(model_of('odd_state', **fields), params, tokens)  # noqa: E731
  found = run(**changes, backward=backward)
  assert largest_gap(found, run(**changes, backward='scan')) < 1e-12
  assert largest_gap(found, run(window=3, depth=LENGTH + 1)) < 1e-9


def test_a_registered_model_is_built_and_counted_by_its_name():
  model = model_of('odd_state')
  shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
  assert accounting.parameters(CONFIGS['odd_state']).stored == sum(a.size for a in shapes)
  crt_jax.register('odd_state', type(model))  # once more is no other
  with pytest.raises(ValueError, match="model.name='crt' is taken"):
    crt_jax.register('crt', type(model))


def test_a_stack_that_lends_nothing_refuses_tied_corrections():
  with pytest.raises(ValueError, match="model.correction='tied' borrows .* a LSTM lends none; use"):
    over_lstm(correction='tied')


def test_a_crt_over_a_cart_costs_what_its_parts_cost():
  fields = dict(name='crt', block='cart', vocab_size=11, width=256, prelude_layers=2, loops=3)
  c, hidden, latent = 256, 768, 64
  core = 2 * c * c + 3 * c * hidden
  body = 3 * (core + 3 * c * latent) + 3 * core + 3 * c * latent
  assert accounting.crt_paper(fields) == body + 8 * c * c
  once = accounting.model_flops(fields, 64, depth=1, training=False)
  again = accounting.model_flops(fields, 64, depth=3, training=False) - once
  assert again == 2 * (2 * (body + 8 * c * c) + 4 * 32 * 6 * c)
