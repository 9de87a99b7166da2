"""A transformer that becomes a CRT: what it computes at first, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax.convert import warm_start
from crt_jax.models.corrections import VARIANTS
from tests.contract.models import CONFIGS, params_of, tokens_of

SOURCE = CONFIGS['roformer']
CRT = SOURCE | dict(name='crt', depth=3)


def begun(model, source, params):
  warm_start.check(model, source)
  return jax.jit(functools.partial(warm_start.begin, model, source))(params, jax.random.key(3))


@pytest.mark.parametrize(
  'correction',
  [c if c in ('add', 'px') else pytest.param(c, marks=pytest.mark.slow) for c in VARIANTS],
)
def test_it_begins_as_the_transformer(float64, correction):
  layers = SOURCE['layers']
  model = crt_jax.build(CRT | dict(correction=correction))
  source = crt_jax.build(SOURCE | dict(layers=layers + (correction == 'sa')))
  given = params_of(source, dtype='float64')
  shallow = crt_jax.build(SOURCE)
  part = given | dict(layers=jax.tree.map(lambda a: a[:layers], given['layers']))
  tokens = tokens_of(model)
  expected = shallow.apply(part, tokens).logits_BxTxV
  params = begun(model, source, given)
  fresh = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
  gaps = [jnp.abs(model.apply(params, tokens, k).logits_BxTxV - expected).max() for k in (1, 4)]
  gaps.append(jnp.abs(model.sequential(params, tokens) - expected).max())
  assert (max(gaps) < 1e-12) == VARIANTS[correction].can_be_silent, gaps


def test_what_is_new_can_learn():
  """Only the last projection begins at zero, so its gradient is not zero."""
  source, model = crt_jax.build(SOURCE), crt_jax.build(CRT)
  params = begun(model, source, params_of(source))
  tokens = tokens_of(model)
  batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1))
  gradient = jax.grad(lambda p: model.loss(p, batch)[0])(params)['correction']['feed_forward']
  assert np.abs(gradient['down']['weight']).max() > 1e-6
  assert np.abs(params['correction']['feed_forward']['up']['weight']).max() > 0


def test_a_model_of_its_own_kind_is_taken_as_it_is():
  model = crt_jax.build(CRT | dict(depth=5, dropout=0.2))
  source = crt_jax.build(CRT)
  params = params_of(source)
  jax.tree.map(np.testing.assert_array_equal, begun(model, source, params), params)


@pytest.mark.parametrize(
  ('changes', 'source', 'message'),
  [
    ({}, SOURCE | dict(layers=3), 'model.layers=2 .* of 2 layers; the trained one has 3'),
    (dict(correction='sa'), SOURCE, "'sa' begins as a transformer of 3 layers"),
    (dict(width=32), SOURCE, 'model.width=32 is 16 in the trained model'),
    (dict(rotary='standard'), SOURCE, 'model.rotary=standard is integer_reversed in the'),
    ({}, CONFIGS['roformer_head_ffn'] | dict(window=0), "'roformer_head_ffn': only a 'roformer'"),
    ({}, CONFIGS['cart'], "model.name='crt' cannot begin as a trained 'cart'"),
    (
      dict(correction='concat'),
      CRT,
      r'correction/feed_forward/up/weight has shape \(64, 32\), and',
    ),
  ],
)
def test_what_does_not_fit_is_named(changes, source, message):
  with pytest.raises(ValueError, match=message):
    warm_start.check(crt_jax.build(CRT | changes), crt_jax.build(source))
