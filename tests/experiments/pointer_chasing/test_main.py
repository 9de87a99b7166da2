"""What experiments.pointer_chasing makes of the records of its runs."""

import json

import pytest
from absl import flags

from crt_jax.cli.user_errors import Mistake
from experiments.pointer_chasing import __main__ as pointer_chasing
from experiments.pointer_chasing import figure

LEVELS = [f'level_{level}' for level in range(10)]


@pytest.fixture(autouse=True)
def parsed():
  flags.FLAGS.mark_as_parsed()


def fake_run(folder, solved: int, forms):
  """The records that a run leaves."""
  shares = {f'accuracy_{name}': float(i < solved) for i, name in enumerate([*LEVELS, 'final'])}
  rows = [{'step': 1, 'loss': 1.0}]
  rows += [{'step': 2} | {f'validation_{k}': v for k, v in (shares | {'solved': solved}).items()}]
  folder.mkdir(parents=True)
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  sampled = [{'form': form, 'depth': depth, 'targets': 7} | shares for form, depth in forms]
  record = {'training_seconds': 1.0, 'results': {'sampled': sampled}, 'origin': {}}
  (folder / 'evaluation.json').write_text(json.dumps(record))


def test_every_model_is_a_config():
  for model in pointer_chasing.MODELS:
    config = pointer_chasing.config_of(model)
    assert config.data.batch_size * config.eval.batches == 1024
  assert pointer_chasing.config_of('unroll/K=11').model.depth == 11
  assert pointer_chasing.config_of('transformer/N=5').model.layers == 5
  with pytest.raises(Mistake, match='model=rnn is none of'):
    pointer_chasing.config_of('rnn')


def test_results_and_figure(tmp_path):
  models = {}
  for name, solved in (('bptt', 11), ('transformer/N=3', 3), ('unroll/K=5', 5)):
    forms = [('parallel', None if 'N' in name else 5)]
    forms += [] if 'N' in name else [('sequential', None)]
    fake_run(tmp_path / name, solved, forms)
    config = pointer_chasing.config_of(name)
    models[name] = pointer_chasing.result_of(tmp_path / name, config)
  assert models['bptt']['parameters'] > models['transformer/N=3']['parameters'] / 3
  assert figure.trained_record(models['bptt'])['form'] == 'sequential'
  assert figure.trained_record(models['unroll/K=5'])['form'] == 'parallel'
  assert pointer_chasing.words(models['transformer/N=3']) == (
    'parallel: 3 levels, final query 0.00'
  )
  assert models['bptt']['curve'][0]['step'] == 2
  record = {'models': models, 'origin': {}}
  figure.levels(record, tmp_path / 'levels.png')
  assert (tmp_path / 'levels.png').stat().st_size > 10_000


def test_a_level_is_solved_above_nine_tenths():
  accuracy = {'level_0': 0.91, 'level_1': 0.9, 'final': 0.95}
  assert figure.solved_levels(accuracy) == (1, 0.95)
