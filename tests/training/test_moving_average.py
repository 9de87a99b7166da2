"""`optimizer.ema_decay`: a moving average of the parameters is scored, saved and goes on."""

import json

import jax
import numpy as np
import optax
import pytest

from crt_jax.runs import checkpoint
from crt_jax.runs.train_state import moving_average
from crt_jax.training import finish, startup
from tests.training.tiny import (
  PLAIN,
  assert_same_bits,
  params_of,
  rows_of,
  stop_after,
  timeless,
  tiny_config,
  train,
)

AVERAGED = PLAIN | {'optimizer.ema_decay': 0.8}


def test_the_average_by_hand():
  chain = optax.chain(optax.sgd(1.0), moving_average(0.5))
  params, state, expected = np.float64(1.0), chain.init(np.float64(1.0)), 1.0
  for n in range(1, 30):
    updates, state = chain.update(np.float64(0.1 * n), state, params)
    np.testing.assert_allclose(updates, -0.1 * n)
    params += updates
    kept = min(0.5, (n - 1) / (n + 8))
    expected = kept * expected + (1 - kept) * params
    np.testing.assert_allclose(state[1].params_average, expected, rtol=1e-5)


@pytest.mark.usefixtures('caches')
def test_a_run_with_an_average(tmp_path, monkeypatch):
  """What is trained is as without one; what is loaded and scored is the average, after a stop too;
  on a mesh as well."""
  plain, whole, stopped = (tmp_path / name for name in ('plain', 'whole', 'stopped'))
  train(tiny_config(**PLAIN), plain)
  train(tiny_config(**AVERAGED), whole)
  with monkeypatch.context() as patch, pytest.raises(SystemExit):
    stop_after(patch, 7)
    train(tiny_config(**AVERAGED), stopped)
  train(tiny_config(**AVERAGED), stopped)
  assert_same_bits(params_of(stopped), params_of(whole))
  losses = [[row['loss'] for row in rows_of(path)] for path in (plain, whole, stopped)]
  assert losses[0] == losses[1] == losses[2]
  assert list(map(timeless, rows_of(stopped))) == list(map(timeless, rows_of(whole)))

  before = cross_entropies_of(whole)
  finish.evaluate_checkpoint(whole)
  assert cross_entropies_of(whole) == pytest.approx(before, rel=1e-5)
  average, trained = params_of(whole), params_of(plain)
  assert any(np.abs(average[name] - trained[name]).max() > 1e-4 for name in average)

  sharded = tiny_config(**AVERAGED, **{'mesh.data': 4, 'mesh.fsdp': 2})
  train(sharded, tmp_path / 'sharded')
  assert cross_entropies_of(tmp_path / 'sharded') == pytest.approx(before, rel=1e-4)


@pytest.mark.usefixtures('caches')
def test_a_restored_state_holds_both(tmp_path):
  config = tiny_config(**AVERAGED | {'train.steps': 4})
  train(config, tmp_path)
  run = startup.prepare(tiny_config(**AVERAGED | {'train.steps': 5}), tmp_path, fork=True)
  saved = params_of(tmp_path)
  evaluated = jax.tree_util.tree_flatten_with_path(run.state.evaluated)[0]
  assert_same_bits(saved, {jax.tree_util.keystr(path): np.asarray(x) for path, x in evaluated})
  trained = jax.tree_util.tree_flatten_with_path(run.state.params)[0]
  assert any((np.asarray(x) != saved[jax.tree_util.keystr(path)]).any() for path, x in trained)
  run.checkpoints.close()
  assert checkpoint.newest(tmp_path) == 4


def cross_entropies_of(path):
  results = json.loads((path / 'evaluation.json').read_text())['results']
  return [row['cross_entropy'] for row in results['sampled']]
