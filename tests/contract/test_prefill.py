"""Reading prompts and stepping on: whatever the number of rows, their lengths, the method and the
room that is left, padding leaves no trace, and what cannot be is an error or NaN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.models import base
from crt_jax.recurrence.state import apart, is_carry, is_slots
from tests.close import FLOAT32, assert_close
from tests.contract.models import BATCH, CONFIGS, LENGTH
from tests.contract.test_contract import FAST, each_family, jitted, prepared

ROWS = (1, 2, 3)
each_number_of_rows = pytest.mark.parametrize('rows', ROWS)
each_family_at_some_rows = pytest.mark.parametrize(
  'name, rows', [('crt', 1), ('crt', 3), ('cart', 2), ('roformer', 3)]
)


FOLLOWING = (5, 7)


def repeated(a, rows):
  """Rows of `a` again and again, until there are so many."""
  return jnp.tile(a, (rows, 1))[:rows]


def slow_unless(is_fast, *values):
  return pytest.param(*values, marks=() if is_fast else pytest.mark.slow)


@functools.cache
def alone(name, method, row, length):
  """One row where there is room for all padding: state, logits, and those of the tokens behind."""
  model, params, tokens, _ = prepared(name)
  state, logits_1xV = model.decode_state(1, 16), None
  if length:
    text = tokens[row : row + 1, :length]
    state, logits_1xV = model.prefill(params, state, text, method=method, chunk=4)
  after, following = state, []
  for token in FOLLOWING:
    after, following_1xV = jitted(model, 'step')(params, after, jnp.array([token]))
    following.append(following_1xV)
  return state, logits_1xV, following


# Every method of every model at three rows, and those of a CRT at all numbers of them.
@pytest.mark.parametrize(
  'name, method, rows',
  [
    *[slow_unless(name in FAST, name, 'sequential', 3) for name in CONFIGS],
    *[('crt', 'parallel', 3), ('crt', 'chunked', 3), ('odd_state', 'chunked', 3)],
    ('roformer', 'parallel', 3),
    *[
      slow_unless(False, name, 'chunked', 3)
      for name in ('crt_sa', 'crt_windowed', 'crt_cart_per_loop', 'cart')
    ],
    *[('crt', method, rows) for method in ('sequential', 'parallel', 'chunked') for rows in (1, 2)],
    *[('cart', 'sequential', 1), ('roformer', 'parallel', 2)],
  ],
)
def test_ragged_prefill_is_one_row_at_a_time(name, method, rows):
  """In chunks that do not divide a state which the longest prompt fills to its last slot: the same
  logits and caches, nothing behind a row's position, the same steps, and NaN once it is full."""
  model, params, tokens, exact = prepared(name)
  tokens = repeated(tokens, rows)
  for lengths in (LENGTH, 3, 0), (3, 0, LENGTH):
    lengths = np.array(lengths[:rows])
    state, logits_BxV = model.prefill(
      params, model.decode_state(rows, LENGTH), tokens, lengths, method=method, chunk=4
    )
    np.testing.assert_array_equal(state.position_B, lengths)
    after, steps = state, []
    for token in FOLLOWING:
      after, step_BxV = jitted(model, 'step')(params, after, jnp.full(rows, token))
      steps.append(step_BxV)
    for row, length in enumerate(lengths):
      one, expected_1xV, following = alone(name, method, row % BATCH, int(length))
      if length:
        assert_close(logits_BxV[row], expected_1xV[0], FLOAT32)
      if length and (method == 'sequential' or not model.recurs_along_sequence):
        assert_close(logits_BxV[row], exact[row % BATCH, length - 1], FLOAT32)
      (slots, carries), (one_slots, one_carries) = (
        apart(s.caches, is_slots, is_carry) for s in (state, one)
      )
      caches = jax.tree.leaves(slots), jax.tree.leaves(one_slots)
      for cache_NxBxHxSxA, one_Nx1xHxSxA in zip(*caches, strict=True):
        found, expected = (np.asarray(a) for a in (cache_NxBxHxSxA[:, row], one_Nx1xHxSxA[:, 0]))
        assert_close(found[:, :, :length], expected[:, :, :length], FLOAT32)
        assert not found[:, :, length:].any()
      carried = (carries, state.recurrent), (one_carries, one.recurrent)
      for of_all, of_one in zip(*map(jax.tree.leaves, carried), strict=True):
        assert_close(of_all[row], of_one[0], FLOAT32)
      for step, (found_BxV, expected_1xV) in enumerate(zip(steps, following, strict=True), start=1):
        if length + step <= LENGTH:
          assert_close(found_BxV[row], expected_1xV[0], FLOAT32)
        else:
          assert np.isnan(found_BxV[row]).all()


@each_number_of_rows
def test_trailing_caches_are_never_full_and_take_in_no_padding(rows):
  model, params, tokens, exact = prepared('crt_windowed')
  state = model.decode_state(rows, model.config.window - 1)
  state = dataclasses.replace(state, trailing=True)
  lengths = np.array([LENGTH - 1, 3, 5][:rows])
  tokens, exact = repeated(tokens, rows), exact[np.arange(rows) % BATCH]
  state, logits_BxV = model.prefill(params, state, tokens, lengths, chunk=4)
  assert_close(logits_BxV, exact[np.arange(rows), lengths - 1], FLOAT32)
  next_B = tokens[np.arange(rows), lengths]
  _, logits_BxV = jitted(model, 'step')(params, state, next_B)
  assert_close(logits_BxV, exact[np.arange(rows), lengths], FLOAT32)


@each_family_at_some_rows
def test_prefill_continues_where_the_state_stands(name, rows):
  model, params, tokens, exact = prepared(name)
  tokens, exact = repeated(tokens, rows), exact[np.arange(rows) % BATCH]
  state, _ = model.prefill(params, model.decode_state(rows, LENGTH), tokens[:, :2], chunk=2)
  state, logits_BxV = model.prefill(params, state, tokens[:, 2:], chunk=2)
  assert_close(logits_BxV, exact[:, -1], FLOAT32)


@each_family_at_some_rows
def test_prompt_length_compiles_nothing_new(name, rows):
  model, params, tokens, _ = prepared(name)
  tokens, state = jnp.tile(repeated(tokens, rows), (1, 2)), model.decode_state(rows, LENGTH + 1)
  model.prefill(params, state, tokens[:, :6], chunk=4)
  compiled = base._chunk_prefiller('cpu')._cache_size()
  for length in (3, 5, 8):
    model.prefill(params, state, tokens[:, :length], chunk=4)
  assert base._chunk_prefiller('cpu')._cache_size() == compiled


@each_number_of_rows
@each_family
def test_prefill_refuses_what_cannot_be(name, rows):
  model, params, tokens, _ = prepared(name)
  tokens = repeated(tokens, rows)
  state = model.decode_state(rows, LENGTH - 1)
  with pytest.raises(ValueError, match=f'ends at position {LENGTH} .*max_len={LENGTH - 1}'):
    model.prefill(params, state, tokens)
  for last in (-1, 3):
    with pytest.raises(ValueError, match='each row has 0 to 2 tokens'):
      model.prefill(params, state, tokens[:, :2], jnp.array([2, 2, 2][: rows - 1] + [last]))
  with pytest.raises(ValueError, match='one length per row'):
    model.prefill(params, state, tokens[:, :2], jnp.array([2] * (rows + 1)))
  with pytest.raises(ValueError, match='chunk=0'):
    model.prefill(params, state, tokens[:, :2], chunk=0)
  with pytest.raises(ValueError, match='empty'):
    model.prefill(params, state, tokens[:, :0])
  with pytest.raises(ValueError, match="did you mean 'chunked'"):
    model.prefill(params, state, tokens[:, :2], method='chunk')


@each_family
def test_what_is_known_not_to_exist_is_refused(name):
  """Tokens outside the vocabulary, and steps behind the end."""
  model, params, tokens, _ = prepared(name)
  state, vocabulary = model.decode_state(BATCH, LENGTH), model.config.vocab_size
  for wrong in (-1, vocabulary):
    bad, message = tokens.at[1, 2].set(wrong), f'^token {wrong} lies outside .* of {vocabulary};'
    calls = [
      lambda bad=bad: model.apply(params, bad),
      lambda bad=bad: model.sequential(params, bad),
      lambda bad=bad: model.loss(params, dict(tokens=bad, targets=tokens)),
      lambda bad=bad: model.step(params, state, bad[:, 2]),
      lambda bad=bad: model.prefill(params, state, bad),
    ]
    if wrong >= 0:  # below, a target does not count
      calls.append(lambda bad=bad: model.loss(params, dict(tokens=tokens, targets=bad)))
    for call in calls:
      with pytest.raises(ValueError, match=message):
        call()
  full = dataclasses.replace(state, position_B=jnp.array([0, LENGTH]))
  with pytest.raises(ValueError, match=f'ends at position {LENGTH + 1} .*max_len={LENGTH}; make'):
    model.step(params, full, tokens[:, 0])
  # Padding is no text, whatever it holds.
  lengths, padded = np.array([2, 1]), tokens[:, :2].at[1, 1].set(-1)
  _, found_BxV = model.prefill(params, state, padded, lengths, chunk=4)
  _, expected_BxV = model.prefill(params, state, tokens[:, :2], lengths, chunk=4)
  np.testing.assert_array_equal(found_BxV, expected_BxV)


@each_family
def test_what_turns_out_not_to_exist_is_nan_in_its_row(name):
  """The same under jit, and from there on."""
  model, params, tokens, exact = prepared(name)
  state, step = model.decode_state(BATCH, LENGTH), jitted(model, 'step')
  prefill = jitted(model, 'prefill', chunk=4)
  for wrong in (-1, model.config.vocab_size):
    bad = tokens.at[1, 2].set(wrong)
    found = [
      jitted(model, 'apply')(params, bad).logits_BxTxV[:, -1],
      jitted(model, 'sequential')(params, bad)[:, -1],
      prefill(params, state, bad, jnp.array([LENGTH] * 2))[1],
    ]
    after, _ = step(params, state, bad[:, 2])
    found.append(step(params, after, tokens[:, 0])[1])
    for logits_BxV in found:
      assert np.isfinite(logits_BxV[0]).all() and np.isnan(logits_BxV[1]).all()
    assert np.isnan(jitted(model, 'loss')(params, dict(tokens=bad, targets=tokens))[0])
    loss, _ = jitted(model, 'loss')(params, dict(tokens=tokens, targets=bad))
    assert np.isnan(loss) == (wrong > 0)
  # More than there is room for, more than was given, and less than nothing.
  begun = dataclasses.replace(state, position_B=jnp.array([0, 1]))
  for start, length in (begun, LENGTH), (state, LENGTH + 1), (state, -1):
    logits_BxV = prefill(params, start, tokens, jnp.array([LENGTH, length]))[1]
    assert_close(logits_BxV[0], exact[0, -1], FLOAT32)
    assert np.isnan(logits_BxV[1]).all()
