"""Runs that begin with a trained model: train.init_from."""

import shutil

import jax
import numpy as np
import pytest

import crt_jax
from crt_jax import sharding
from crt_jax.cluster import preemption
from crt_jax.data import tokenizers
from crt_jax.runs import checkpoint
from crt_jax.training import loop, startup
from tests.training.tiny import PLAIN, refuse, rows_of, stop_after, tiny_config, train

pytestmark = pytest.mark.usefixtures('caches')


def test_a_crt_begins_as_a_trained_transformer(tmp_path, monkeypatch, capsys):
  """Its first loss is the transformer's on that batch. Killed before its first checkpoint it begins
  with the same step; after that it needs the transformer no longer."""
  source, same, crt = tmp_path / 'source', tmp_path / 'same', tmp_path / 'crt'
  short = {'train.steps': 2, 'model.dropout': 0.0, 'train.log_every': 1}
  train(tiny_config('transformer', **short), source)
  short |= {'train.init_from': str(source)}
  train(tiny_config('transformer', **short), same)
  with monkeypatch.context() as patch:
    patch.setattr(loop, 'run_steps', refuse)
    with pytest.raises(AssertionError):
      train(tiny_config(**short | PLAIN), crt)
  assert startup.saved_beginning(crt) == {'workdir': str(source), 'step': 2}
  later = tiny_config('transformer', **short | {'train.steps': 3, 'train.init_from': ''})
  train(later, source, fork=True)
  with monkeypatch.context() as patch:
    stop_after(patch, 1)
    with pytest.raises(preemption.Preempted):
      train(tiny_config(**short | PLAIN), crt)
  with pytest.raises(ValueError, match=r'has begun already, at step 1; use a new --workdir'):
    train(tiny_config(**short | PLAIN | {'train.init_from': str(same)}), crt, fork=True)
  assert f'begins with   step 2 of {source} (transformer)' in capsys.readouterr().out
  shutil.rmtree(source)
  train(tiny_config(**short | PLAIN), crt)
  rows = rows_of(crt)
  assert [row['step'] for row in rows] == [1, 2]
  np.testing.assert_allclose(rows[0]['loss'], rows_of(same)[0]['loss'], rtol=1e-6)
  assert rows[1]['loss'] != pytest.approx(rows_of(same)[1]['loss'], rel=1e-4)


def test_some_layers_of_a_trained_transformer(tmp_path):
  """The first loss is that of the transformer with those layers, for a CRT too."""
  source, short = tmp_path / 'source', {'train.steps': 2, 'train.log_every': 1} | PLAIN
  del short['model.depth_min']
  train(tiny_config('transformer', **short | {'model.layers': 3}), source)
  kept = short | {'train.init_from': str(source), 'train.keep_layers': (0, 2)}
  kept |= {'model.layers': 2}
  train(tiny_config('transformer', **kept), tmp_path / 'same')
  train(tiny_config(**kept | PLAIN), tmp_path / 'crt')
  config, params, tokenizer, step = checkpoint.load_params(source)
  beginning, mesh = {'workdir': str(source), 'step': step}, sharding.make_mesh(config.mesh)
  model = crt_jax.build(tiny_config('transformer', **kept).model)
  _, some = startup.trained_source(beginning, model, mesh, tokenizer, (0, 2))
  for path, x in jax.tree_util.tree_leaves_with_path(some['layers']):
    whole = dict(jax.tree_util.tree_leaves_with_path(params['layers']))[path]
    np.testing.assert_array_equal(x, np.asarray(whole)[[0, 2]])
  losses = [rows_of(tmp_path / name)[0]['loss'] for name in ('same', 'crt')]
  np.testing.assert_allclose(*losses, rtol=1e-6)
  with pytest.raises(ValueError, match='keep_layers names layer 3; the model has 3, from 0'):
    train(tiny_config('transformer', **kept | {'train.keep_layers': (0, 3)}), tmp_path / 'new')
  with pytest.raises(ValueError, match=r'train.keep_layers=\(2, 0\) must be rising'):
    train(tiny_config('transformer', **kept | {'train.keep_layers': (2, 0)}), tmp_path / 'new')


def test_a_trained_model_that_does_not_fit_is_refused(tmp_path, monkeypatch):
  trained = tmp_path / 'trained'
  train(tiny_config(**PLAIN | {'train.steps': 1}), trained)

  def refused(message, **changes):
    changes |= {'train.init_from': str(trained)}
    with pytest.raises(ValueError, match=message):
      train(tiny_config(**changes), tmp_path / 'new')
    assert not (tmp_path / 'new').exists()

  refused('train.init_from=.*: model.width=32 is 16 in the trained', **{'model.width': 32})
  with monkeypatch.context() as patch:
    other = tokenizers.ByteTokenizer(eos=256)
    patch.setattr(checkpoint, 'load_tokenizer', lambda *arguments: other)
    refused('was trained with another tokenizer; use that: --config.data.tokenizer=')
