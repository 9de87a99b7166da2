"""Perplexity against sums written out by hand, in both forms."""

import math

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import crt_jax
from crt_jax import evaluation
from crt_jax.evaluation import perplexity
from crt_jax.recurrence.state import jit_in_place

FIELDS = dict(name='crt', vocab_size=256, width=16, heads=2, layers=1, rotary='standard', depth=3)


@pytest.fixture(scope='module')
def model():
  return crt_jax.build(FIELDS)


@pytest.fixture(scope='module')
def params(model):
  random = np.random.RandomState(1)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(lambda a: 0.5 * random.normal(size=a.shape).astype(a.dtype), shapes)


def batches(counts, length=6, rows=2):
  """One batch per count, of which that many targets count."""
  random = np.random.RandomState(0)
  for count in counts:
    tokens = random.randint(0, 256, (rows, length))
    targets = random.randint(0, 256, (rows, length))
    targets.reshape(-1)[count:] = -1
    yield dict(tokens=tokens.astype(np.int32), targets=targets.astype(np.int32))


def by_hand(logits_of, counts):
  """Negative log-likelihood of every single target, in float64."""
  losses = []
  for batch in batches(counts):
    logits = np.asarray(logits_of(batch['tokens']), np.float64)
    for row, position in np.argwhere(batch['targets'] >= 0):
      scores = logits[row, position]
      losses.append(np.log(np.exp(scores).sum()) - scores[batch['targets'][row, position]])
  return np.mean(losses)


@pytest.mark.parametrize('depth', [None, 2])
def test_parallel_weighs_every_target_the_same(model, params, depth):
  counts = (12, 1, 5)
  logits_of = jax.jit(lambda tokens: model.apply(params, tokens, depth=depth).logits_BxTxV)
  expected = by_hand(logits_of, counts)
  found = evaluation.evaluate(model, params, batches(counts), depth, bytes_per_token=3.5)
  assert found['targets'] == 18
  assert found['cross_entropy'] == pytest.approx(expected, rel=1e-5)
  assert found['perplexity'] == pytest.approx(math.exp(expected), rel=1e-4)
  assert found['bits_per_byte'] == pytest.approx(expected / math.log(2) / 3.5, rel=1e-5)
  assert np.dot(found['means'], counts) / 18 == pytest.approx(found['cross_entropy'], rel=1e-12)


def test_sequential_is_the_limit_of_the_parallel_form(model, params):
  counts = (12, 7)
  expected = by_hand(lambda tokens: model.sequential(params, tokens), counts)
  found = evaluation.evaluate(model, params, batches(counts), sequential=True)
  assert found['cross_entropy'] == pytest.approx(expected, rel=1e-5)
  assert found['bits_per_byte'] is None
  deep = evaluation.evaluate(model, params, batches(counts), depth=7)
  assert deep['cross_entropy'] == pytest.approx(expected, rel=1e-5)
  shallow = evaluation.evaluate(model, params, batches(counts), depth=2)
  assert shallow['cross_entropy'] != pytest.approx(expected, rel=1e-5)


def test_the_form_does_not_follow_what_training_differentiates(model, params):
  trained_sequentially = crt_jax.build(FIELDS | dict(driver='sequential'))
  found = evaluation.evaluate(trained_sequentially, params, batches([12]), depth=2)
  assert found == evaluation.evaluate(model, params, batches([12]), depth=2)


def test_convergence_loss_and_dropout_do_not_enter(model, params):
  fields = FIELDS | dict(convergence_weight=10.0, dropout=0.5)
  found = evaluation.evaluate(crt_jax.build(fields), params, batches([12]))
  assert found == evaluation.evaluate(model, params, batches([12]))


def test_compiled_once_per_form_and_shape(model, params):
  static = ('model', 'depth', 'sequential')
  jitted = jit_in_place(perplexity._cross_entropy, 'cpu', static)
  jitted.clear_cache()
  for _ in range(2):
    evaluation.evaluate(model, params, batches([12, 3, 4]))
    evaluation.evaluate(model, params, batches([12, 3, 4]), sequential=True)
  assert jitted._cache_size() == 2


def test_sharded_batches_give_the_same(model, params):
  devices = jax.device_count()
  mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  host = list(batches([40, 30], rows=8))
  found = evaluation.evaluate(model, replicated, (jax.device_put(b, sharding) for b in host))
  expected = evaluation.evaluate(model, params, host)
  assert found['cross_entropy'] == pytest.approx(expected['cross_entropy'], rel=1e-5)


@pytest.mark.parametrize(
  'fields,options,message',
  [
    (FIELDS, dict(depth=0), 'depth=0 must be at least 1'),
    (FIELDS, dict(depth=2, sequential=True), 'a CRT has one exact sequential form'),
    (FIELDS | dict(cumulative=True), dict(sequential=True), 'model.cumulative=True'),
  ],
)
def test_forms_a_model_does_not_have(params, fields, options, message):
  with pytest.raises(ValueError, match=message):
    evaluation.evaluate(crt_jax.build(fields), params, batches([12]), **options)


def test_nothing_to_evaluate(model, params):
  for empty in ([], batches([0])):
    with pytest.raises(ValueError, match='no batch has a target that counts'):
      evaluation.evaluate(model, params, empty)


def a_config(**evaluate):
  evaluate = dict(depths=(1, 2), sequential=True) | evaluate
  return ml_collections.ConfigDict(dict(eval=evaluate))


def test_forms_of_a_config(model):
  form = evaluation.Form
  assert evaluation.forms(model, a_config()) == (
    form('parallel', 1),
    form('parallel', 2),
    form('sequential'),
  )
  once = evaluation.forms(model, a_config(depths=(), sequential=False))
  assert once == (form('parallel', 3),)
  assert not form('parallel', 1).is_inference_metric(model)
  assert form('parallel', 2).is_inference_metric(model)
  with pytest.raises(ValueError, match="form 'serial' is unknown"):
    form('serial')
  with pytest.raises(ValueError, match=r'eval.depths=\(2, 0\): depth=0'):
    evaluation.forms(model, a_config(depths=(2, 0)))
  cumulative = crt_jax.build(FIELDS | dict(cumulative=True))
  with pytest.raises(ValueError, match='eval.sequential=True.*model.cumulative=True'):
    evaluation.forms(cumulative, a_config())


def test_a_transformer_has_one_form():
  fields = dict(name='transformer', vocab_size=256, width=16, heads=2, layers=1, rotary='standard')
  model = crt_jax.build(fields)
  (form,) = evaluation.forms(model, a_config(depths=()))
  assert form == evaluation.Form('parallel') and form.is_inference_metric(model)
  with pytest.raises(ValueError, match='eval.depths=.*no recurrent passes'):
    evaluation.forms(model, a_config())
