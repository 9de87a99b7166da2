"""The study of gradients and fine-tuning, at toy size: pieces, their resumption, and mistakes."""

import json

import numpy as np
import pytest

from configs import base
from configs import bptt_study as study_config
from crt_jax import schema
from experiments.bptt_study import pieces


def tiny():
  config = study_config.get_config()
  config.data.update(
    corpus='moby_dick', tokenizer='bytes', vocab_size=256, separator='none', split='auto'
  )
  config.data.update(sequence_length=6, batch_size=2)
  config.model.update(width=8, heads=2, depth=3, depth_min=0, convergence_weight=0.0)
  config.train.update(steps=2, log_every=1)
  config.eval.update(batches=1, depths=(3,))
  config.study.update(seeds=(3, 8), batches=1, passes=(1, 7), last=(1,), reverse=(6,), reach=(6,))
  config.study.update(chunks=(3,), fine_tuning_steps=2)
  config.study.fine_tuning.chunks_of_16.update(model=dict(driver='chunked', chunk=3, depth=2))
  for way in ('truncated_at_16', 'five_passes', 'five_passes_without_convergence_loss'):
    del config.study.fine_tuning[way]
  return config.lock()


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  path = tmp_path_factory.mktemp('bptt_study')
  pieces.run(tiny(), str(path))
  return path


@pytest.mark.slow
def test_what_is_exact_has_the_exact_gradient_and_the_rest_has_not(done):
  record = json.loads((done / 'gradients.json').read_text())
  rows = record['estimators']
  assert list(rows)[0] == 'exact'
  for of in ('fresh 3', 'trained 8'):
    cosine = {name: row['measured'][of]['cosine_all'][0] for name, row in rows.items()}
    for name in ('exact', 'K=7 passes', 'truncated, w=6'):
      assert cosine[name] > 1 - 1e-9, name
    for name in ('K=1 passes', 'last 1 of 3 passes', 'chunks c=3, K=2'):
      assert cosine[name] < 1 - 1e-9, name
    assert rows['K=1 passes']['measured'][of]['norm_ratio_correction'] == [0.0]
    assert rows['exact']['measured'][of]['norm_ratio_all'][0] == pytest.approx(1)
  assert all(row['temporary_bytes'] > 0 and row['seconds'] > 0 for row in rows.values())


@pytest.mark.slow
def test_fine_tuning_goes_on_from_the_trained_parameters_and_new_batches(done):
  record = json.loads((done / 'results.json').read_text())['pieces']
  assert list(record) == ['base', 'chunks_of_16', 'exact_bptt', 'more_of_the_same']
  first = {name: piece['history'][0] for name, piece in record.items()}
  # All start from the same parameters and see the same batch, not the one that base saw first.
  losses = np.array([first[name]['loss'] for name in list(record)[1:]])
  assert np.ptp(losses, axis=0).max() < 0.05
  assert abs(losses[0][0] - first['base']['loss'][0]) > 1e-3
  assert record['exact_bptt']['config']['model']['driver'] == 'sequential'
  for piece in record.values():
    assert [row['form'] for row in piece['validation']] == ['parallel', 'sequential']
  assert record['base']['seconds'] > 0


@pytest.mark.slow
def test_tables_and_figures(done):
  assert (done / 'gradients.txt').read_text().count('\n') == 9
  assert 'then exact bptt' in (done / 'fine_tuning.txt').read_text()
  for name in ('gradients', 'fine_tuning'):
    assert (done / f'{name}.png').stat().st_size > 10_000


@pytest.mark.slow
def test_what_is_done_is_not_done_again(done, monkeypatch, capsys):
  monkeypatch.setattr(pieces, 'make', None)
  pieces.run(tiny(), str(done))
  assert 'finished' in capsys.readouterr().out
  changed = tiny().copy_and_resolve_references()
  changed.train.steps = 5
  with pytest.raises(ValueError, match='of another config'):
    pieces.run(changed, str(done))

  def make(name, config, folder):
    raise KeyError(name)

  monkeypatch.setattr(pieces, 'make', make)
  grown = tiny().copy_and_resolve_references()
  with grown.unlocked():
    grown.study.fine_tuning.one_more = dict(model=dict(depth=2))
  with pytest.raises(KeyError, match='one_more'):
    pieces.run(grown, str(done))


def test_mistakes_are_named_before_anything_is_compiled(tmp_path):
  with pytest.raises(ValueError, match='no study of gradients'):
    pieces.run(schema.experiment(base.crt_model()), 'unused')
  with pytest.raises(
    ValueError, match='--only=c: the study has base, gradients, chunks_of_16, exact'
  ):
    pieces.run(tiny(), 'unused', only=('c',))
  wrong = tiny().copy_and_resolve_references()
  wrong.study.reach = (7,)
  with pytest.raises(ValueError, match='gradients: model.gradient_reach=7 exceeds the 6 positions'):
    pieces.run(wrong, 'unused')
  with pytest.raises(ValueError, match='base.npz is missing; make the piece base first'):
    pieces.run(tiny(), str(tmp_path), only=('gradients',))
