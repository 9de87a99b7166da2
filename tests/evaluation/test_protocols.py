"""Which windows of which set are scored, and what the records say of them."""

import functools
import json
import math

import jax
import ml_collections
import numpy as np
import pytest

from crt_jax import data, evaluation
from crt_jax.evaluation.jacobian import jacobian
from crt_jax.placing import ON_ONE_DEVICE, Placement
from tests.contract.models import model_of, params_of

LENGTH, BATCH = 16, 4


@pytest.fixture(scope='module')
def model():
  return model_of('crt', vocab_size=256)


@pytest.fixture(scope='module')
def params(model):
  return params_of(model)


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The data of one corpus."""
  folder = tmp_path_factory.mktemp('one')
  (folder / 'a.txt').write_text('A novel — not a long one. ' * 40)
  return data.prepare(settings(folder, corpus='files', files=str(folder / '*.txt')))


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A mixture of two corpora, the second of which holds only three validation windows."""
  folder = tmp_path_factory.mktemp('two')
  for name, text in (('b', 'whale '), ('a', 'ship! '), ('held_out', 'sea: ')):
    (folder / f'{name}.txt').write_text(text * (12 if name == 'held_out' else 100))
  sources = {
    'b': {'files': str(folder / 'b.txt')},
    'a': {'files': str(folder / 'a.txt'), 'validation_files': str(folder / 'held_out.txt')},
  }
  mixture = dict(corpus='mixture', sources=sources, interleave='b:1, a:1', chunk_tokens=32)
  return data.prepare(settings(folder, **mixture))


def settings(folder, **fields):
  cache = str(folder / 'cache')
  return dict(sequence_length=LENGTH, validation_fraction=0.3, cache_dir=cache, **fields)


def a_config(**changes):
  fields = dict(sample='random', batches=3, seed=42, windows=5, whole=True, depths=(2,))
  fields |= dict(sequential=False, during_training_batches=2, dtype='', jacobian_iterations=0)
  fields |= dict(whole_tokens=0)
  data_fields = dict(sequence_length=LENGTH, batch_size=BATCH)
  sections = dict(eval=fields | changes, data=data_fields, train=dict(steps=10))
  return ml_collections.ConfigDict(sections)


def test_one_corpus_in_every_form(model, params, one):
  placed = []
  place = Placement(put=lambda batch: placed.append(batch) or batch)
  config = a_config(depths=(1, 2), sequential=True)
  results = evaluation.protocol(model, params, one, config, place)
  assert json.loads(json.dumps(results)) == results
  sizes = (('sampled', 'random', 3 * BATCH * LENGTH), ('whole', 'whole', len(one.validation) - 1))
  for name, protocol, targets in sizes:
    assert [(r['form'], r['depth']) for r in results[name]] == [
      ('parallel', 1),
      ('parallel', 2),
      ('sequential', None),
    ]
    assert [r['is_inference_metric'] for r in results[name]] == [False, True, True]
    assert {(r['set'], r['protocol'], r['targets']) for r in results[name]} == {
      ('files', protocol, targets)
    }
  sampled = data.sampled_validation(one, LENGTH, BATCH, 3, 42)
  expected = evaluation.evaluate(model, params, sampled, 2, bytes_per_token=1.0)
  assert results['sampled'][1].items() >= expected.items()
  assert len(placed) == 3 * (3 + math.ceil(results['whole'][0]['targets'] / 64))
  assert results['data']['bytes_per_token'] == {'files': 1.0}
  assert 'whole' not in evaluation.protocol(model, params, one, a_config(whole=False))


def test_the_first_windows_are_scored_as_cart_does(model, params, two):
  """exp of the mean of the losses of single windows, one at a time (cart.md, 5.4)."""
  config = a_config(sample='first')
  loss_of = jax.jit(functools.partial(model.loss, depth=2))
  results = evaluation.protocol(model, params, two, config)
  assert [(r['set'], r['protocol']) for r in results['sampled']] == [('b', 'first'), ('a', 'first')]
  for record, windows in zip(results['sampled'], (5, 3), strict=True):
    tokens = two.sources[record['set']].validation
    losses = []
    for i in range(windows):
      row = tokens[i * LENGTH : i * LENGTH + LENGTH + 1][None].astype(np.int32)
      loss, _ = loss_of(params, dict(tokens=row[:, :-1], targets=row[:, 1:]))
      losses.append(float(loss))
    assert record['targets'] == windows * LENGTH
    assert record['cross_entropy'] == pytest.approx(np.mean(losses), rel=1e-5)
    assert record['perplexity'] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
  whole = {r['set']: r['targets'] for r in results['whole']}
  assert whole == {name: len(s.validation) - 1 for name, s in two.sources.items()}


def test_training_scores_the_same_windows(model, params, two):
  depth = model.config.depth
  for sample in ('random', 'first'):
    config = a_config(sample=sample, batches=2, depths=(depth,), whole=False)
    final = evaluation.protocol(model, params, two, config)['sampled']
    found = evaluation.during_training(model, params, two, config, ON_ONE_DEVICE)
    assert list(found) == ['b', 'a']
    for record in final:
      assert record.items() >= found[record['set']].items()


def test_the_jacobian_is_measured_over_the_first_window_in_float32(model, params, two):
  coarse = model_of('crt', vocab_size=256, dtype='bfloat16')
  config = a_config(sample='first', whole=False, jacobian_iterations=3)
  final = evaluation.protocol(coarse, params, two, config)['jacobian']
  found = evaluation.during_training(coarse, params, two, config, ON_ONE_DEVICE)
  for name, source in two.sources.items():
    window = source.validation[:LENGTH][None].astype(np.int32)
    expected = jacobian(model, params, window, iterations=3)
    assert final[name] == {what: float(value) for what, value in expected.items()}
    assert found[name].items() >= final[name].items()
  assert final['a'] != final['b']
  assert 'jacobian' not in evaluation.protocol(coarse, params, two, a_config(whole=False))


def test_scoring_may_be_more_precise_than_training(params, two):
  model = model_of('crt', vocab_size=256, dtype='bfloat16')
  config = a_config(dtype='float32', whole=False)
  results = evaluation.protocol(model, params, two, config)
  expected = evaluation.protocol(model_of('crt', vocab_size=256), params, two, config)
  assert results == expected and results['data']['dtype'] == 'float32'
  coarse = evaluation.protocol(model, params, two, a_config(whole=False))
  assert coarse['sampled'] != results['sampled'] and coarse['data']['dtype'] == 'bfloat16'
  fused = model_of('crt', dtype='bfloat16', attention_kernel='cudnn')
  assert evaluation.scoring_model(fused, config).config.attention_kernel == 'xla'


class _Stopped(Exception):
  pass


@pytest.mark.parametrize('stop', [1, 4, 7, 9])
def test_an_evaluation_goes_on_where_it_was(model, params, one, monkeypatch, stop):
  """Whatever batch it was stopped after: the same bits, and no batch is scored twice."""
  monkeypatch.setattr('crt_jax.evaluation.ledger.WRITE_EVERY', 0.0)
  config, placed, kept = a_config(depths=(1, 2)), [], []

  def place(batch):
    if len(placed) == stop:
      raise _Stopped
    placed.append(batch)
    return batch

  with pytest.raises(_Stopped):
    ledger = evaluation.Ledger({'step': 3}, write=lambda value: kept.append(json.dumps(value)))
    evaluation.protocol(model, params, one, config, Placement(put=place), ledger)
  found = json.loads(kept[-1])
  again = []
  ledger = evaluation.Ledger({'step': 3}, found)
  place = Placement(put=lambda b: again.append(b) or b)
  results = evaluation.protocol(model, params, one, config, place, ledger)
  whole, other = [], evaluation.Ledger({'step': 4}, found)
  config_and_place = config, Placement(put=lambda b: whole.append(b) or b)
  assert results == evaluation.protocol(model, params, one, *config_and_place, other)
  # The batch that was running when it stopped is scored again: its sums had not been read yet.
  assert len(whole) - len(again) == stop - 1


def test_a_long_set_is_scored_from_its_beginning(model, params, one):
  tokens = len(one.validation) - 1
  assert tokens > 2 * BATCH * LENGTH
  results = evaluation.protocol(model, params, one, a_config(whole_tokens=BATCH * LENGTH + 1))
  [record] = results['whole']
  assert (record['protocol'], record['targets']) == ('leading', 2 * BATCH * LENGTH)
  [part] = [p for p in evaluation.plan(model, one, a_config()) if p.kind == 'whole']
  assert (part.protocol, part.tokens) == ('whole', tokens)


def test_what_is_scored_is_small_beside_the_training():
  """A tenth of the tokens that were trained on, in all forms together, or a million."""
  from crt_jax.evaluation.protocols import most_tokens

  config = a_config()
  assert most_tokens(config, 1) == 2**20
  config.train.steps = 10**7
  assert most_tokens(config, 5) == 10**7 * BATCH * LENGTH // 50
  config.eval.whole_tokens = 7
  assert most_tokens(config, 5) == 7
