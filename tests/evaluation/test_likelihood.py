"""Scores of tokens behind others are those of Model.sequential, row by row, whatever the batch."""

import functools

import jax
import numpy as np
import pytest

from crt_jax.evaluation import Form
from crt_jax.evaluation.harness import task_forms
from crt_jax.evaluation.likelihood import likelihoods, padded_length
from tests.close import FLOAT32
from tests.contract.models import model_of, params_of

CONTEXT = 40
# Tokens before and tokens scored: short, cut on the left, and one that fills the context.
LENGTHS = ((60, 4), (1, 1), (9, 40), (7, 2), (1, 8))


def pairs_of(lengths, seed=0):
  generator = np.random.default_rng(seed)
  return [tuple(generator.integers(0, 23, n).tolist() for n in pair) for pair in lengths]


def by_hand(before, scored, logits_of):
  """One row alone, without padding."""
  tokens = [*before, *scored][-(CONTEXT + 1) :]
  logits_TxV = np.asarray(logits_of(np.array([tokens[:-1]]))[0][-len(scored) :], np.float64)
  logs_TxV = logits_TxV - np.logaddexp.reduce(logits_TxV, axis=-1, keepdims=True)
  is_greedy = bool((logs_TxV.argmax(-1) == scored).all())
  return logs_TxV[np.arange(len(scored)), scored].sum(), is_greedy


def assert_same(found, expected):
  for (log, is_greedy), (wanted, greedy) in zip(found, expected, strict=True):
    assert abs(log - wanted) <= FLOAT32 * max(1, abs(wanted)) and is_greedy == greedy


@pytest.mark.parametrize('name', ('crt', 'cart'))
def test_each_row_is_that_of_the_exact_form(name):
  model = model_of(name)
  params, [form] = params_of(model), task_forms(model)
  assert form.kind == dict(crt='sequential', cart='parallel')[name]
  pairs = pairs_of(LENGTHS)
  exact = functools.partial(model.sequential, params)
  before = [3] * 8
  likeliest = int(np.asarray(exact(np.array([before])))[0, -1].argmax())
  pairs.append((before, [likeliest]))
  expected = [by_hand(*pair, exact) for pair in pairs]
  assert expected[-1][1] and not all(greedy for _, greedy in expected)
  for count, batch_size in ((1, 16), (2, 16), (3, 16), (len(pairs), 2)):
    rows = likelihoods(model, params, pairs[-count:], form, context=CONTEXT, batch_size=batch_size)
    assert_same(rows, expected[-count:])


def test_parallel_passes_and_loops_are_the_depth_that_is_asked_for():
  for name, depths in (('crt', (1, 2)), ('cart', (1, 5))):
    model = model_of(name)
    params = params_of(model)
    apply = jax.jit(model.apply, static_argnames='depth')
    forms = task_forms(model, depths)
    assert [form.depth for form in forms] == [*depths, *([None] if name == 'crt' else [])]
    pairs = pairs_of(((3, 2), (2, 3)))
    for form in forms[:2]:
      logits_of = lambda tokens: apply(params, tokens, depth=form.depth).logits_BxTxV  # noqa: B023, E731
      expected = [by_hand(*pair, logits_of) for pair in pairs]
      assert_same(likelihoods(model, params, pairs, form, context=CONTEXT), expected)


def test_a_crt_without_recurrence_is_scored_by_its_passes():
  model = model_of('crt', correction='block_head', cumulative=True)
  assert task_forms(model) == (Form('parallel', 3),)
  with pytest.raises(ValueError, match='a transformer has no recurrent passes'):
    task_forms(model_of('llama'), (2,))


def test_few_shapes_and_the_longest_first(monkeypatch):
  model = model_of('llama')
  seen, told = [], []

  def score(model, params, tokens, places, targets, form):
    seen.append((*tokens.shape, targets.shape[1]))
    return np.zeros(targets.shape), np.zeros(len(tokens), bool)

  monkeypatch.setattr('crt_jax.evaluation.likelihood.jit_in_place', lambda *how: score)
  pairs = pairs_of([(n, 1) for n in (1, 31, 32, 33, 64, 65, 90)] + [(90, 5), (97, 1)])
  form = Form('parallel')
  likelihoods(model, {}, pairs, form, context=100, batch_size=2, after=told.append)
  assert seen == [(2, 100, 16), (2, 96, 4), (2, 64, 4), (2, 32, 4), (2, 32, 4)]
  assert told == [2, 2, 2, 2, 1]
  assert [padded_length(n, 999) for n in (1, 32, 33, 48, 49, 64, 65, 97)] == [
    32, 32, 48, 48, 64, 64, 96, 128,
  ]  # fmt: skip
  assert likelihoods(model, {}, [], form, context=100) == []


@pytest.mark.parametrize(
  'pair, message',
  (
    (([], [1]), 'no token stands before what is scored'),
    (([1], []), '0 tokens are to be scored at once'),
    (([1], [1] * 41), '41 tokens are to be scored at once, and the context has room for 1 to 40'),
    (([23], [1]), 'token 23 lies outside the vocabulary of 23'),
    (([1], [23]), 'token 23 lies outside the vocabulary of 23'),
    (([-1], [2]), 'token -1 lies outside'),
  ),
)
def test_what_cannot_be_scored_is_named(pair, message):
  with pytest.raises(ValueError, match=message):
    likelihoods(model_of('llama'), {}, [pair], Form('parallel'), context=CONTEXT)


def test_more_positions_than_were_learned_and_logits_that_are_not_finite():
  model = model_of('gpt2')
  with pytest.raises(ValueError, match='model.max_positions=24 were learned'):
    likelihoods(model, {}, [([1], [2])], Form('parallel'), context=25)
  params = jax.tree.map(lambda a: a * np.nan, params_of(model))
  with pytest.raises(ValueError, match='text 0: the logits of the model are not finite'):
    likelihoods(model, params, [([1], [2])], Form('parallel'), context=24)
