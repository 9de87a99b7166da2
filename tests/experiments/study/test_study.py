"""Studies: stacked seeds equal runs of their own, variants are resumed, results can be drawn."""

import json

import jax
import numpy as np
import pytest

from configs import base
from configs.studies import gate
from crt_jax import data, schema
from crt_jax.models import registry
from crt_jax.runs.train_state import TrainState
from crt_jax.training import optimizer
from crt_jax.training.step import train_step
from experiments.study import figures, variants
from experiments.study.vmapped_seeds import train_stacked


def tiny():
  config = schema.experiment(base.cart_model(width=64, prelude_layers=2, loops=2))
  config.data.update(sequence_length=16, batch_size=2, validation_fraction=0.0005)
  config.optimizer.update(learning_rate=1e-2, weight_decay=0.5)
  config.train.update(steps=4, log_every=2, telemetry_every=2)
  config.eval.sequential = False
  config.eval.depths = (1, 2)
  changes = {'a': {}, 'b': {'optimizer': {'frozen': ('gate',)}}}
  return base.study(config, changes, figure='gate', seeds=(3, 8))


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  path = tmp_path_factory.mktemp('study')
  variants.run(tiny().lock(), str(path))
  return path


def test_each_stacked_seed_is_a_run_of_its_own(done):
  config = variants.variant_config(tiny(), 'a')
  result = json.loads((done / 'variants' / 'a.json').read_text())
  model = registry.build(config.model)
  tx = optimizer.make_optimizer(config.optimizer, model, 4)
  schedule = optimizer.make_schedule(config.optimizer, 4)
  batches = data.train_batches(data.prepare(config.data), config.data, config.seed)
  step = jax.jit(lambda state, batch: train_step(model, tx, schedule, 8, 1, state, batch, depth=2))
  params = jax.jit(model.init)(jax.random.key(8))
  state, losses = TrainState(np.int32(0), params, tx.init(params)), {}
  for index in range(4):
    state, metrics = step(state, batches[index])
    losses[index + 1] = float(metrics['loss'])
  for row in result['history']:
    assert abs(row['loss'][1] - losses[row['step']]) < 1e-5
    assert row['loss'][0] != row['loss'][1]


def test_a_frozen_gate_stays_and_a_free_one_follows_decay(done):
  rows = {
    name: json.loads((done / 'variants' / f'{name}.json').read_text())['history'] for name in 'ab'
  }
  np.testing.assert_allclose(rows['b'][-1]['gate_mean'], 0.9, atol=1e-6)
  assert max(rows['a'][-1]['gate_mean']) < 0.9
  # Four steps of 1e-2 with decay 0.5; the metrics are of the state before the update.
  assert rows['a'][-1]['decay_factor'] == pytest.approx((1 - 0.5 * 1e-2) ** 4)
  start = figures.decayed(0.9, [{'decay_factor': 1.0}])
  np.testing.assert_allclose(start, 0.9)


def test_validation_and_jacobian_of_every_seed(done):
  result = json.loads((done / 'results.json').read_text())
  for variant in result['variants'].values():
    assert variant['data'] == data.prepare(tiny().data).identity
    assert [record['depth'] for record in variant['validation']] == [1, 2]
    assert all(len(record['perplexity']) == 2 for record in variant['validation'])
    assert all(len(values) == 2 for values in variant['jacobian'].values())
  assert (done / 'figure.png').stat().st_size > 10_000


def test_what_is_done_is_not_done_again(done, monkeypatch, capsys):
  monkeypatch.setattr(variants, 'train_stacked', None)
  variants.run(tiny().lock(), str(done))
  assert 'finished' in capsys.readouterr().out
  changed = tiny()
  changed.train.steps = 5
  with pytest.raises(ValueError, match='of another config'):
    variants.run(changed.lock(), str(done))


def test_mistakes_are_named():
  with pytest.raises(ValueError, match='names no study'):
    variants.run(schema.experiment(base.cart_model()), 'unused')
  with pytest.raises(ValueError, match='--only=c: the study has a, b'):
    variants.run(tiny(), 'unused', only=('c',))
  wrong = variants.variant_config(tiny(), 'a')
  wrong.optimizer.frozen = ('gates',)
  with pytest.raises(ValueError, match="'gates' is no part of the model"):
    train_stacked(wrong, (0,), print)


@pytest.mark.parametrize('figure', ['depths', 'grid'])
def test_other_figures_draw_the_same_results(done, tmp_path, figure):
  record = json.loads((done / 'results.json').read_text()) | {'study': figure}
  figures.draw(record, tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').stat().st_size > 10_000


def test_the_published_variants_of_the_gate_study():
  config = gate.get_config()
  assert len(config.study.variants) == 8
  off = variants.variant_config(config, 'off')
  assert not off.model.gate and 'study' not in off
  assert variants.variant_config(config, 'no_decay_0_5').optimizer.decay_mask == 'all_but_gate'
