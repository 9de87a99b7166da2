"""A loss, a gradient or an update that is not finite: it is said, and never saved as good."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from crt_jax import evaluation
from crt_jax.runs import bucket, workdir
from crt_jax.training import loop, startup
from tests.training.tiny import PLAIN, params_of, rows_of, tiny_config, train

pytestmark = pytest.mark.usefixtures('caches')


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, capsys):
  config = tiny_config(**{'optimizer.learning_rate': 1e30, 'train.checkpoint_every': 1} | PLAIN)
  with pytest.raises(loop.Diverged) as stopped:
    train(config, tmp_path)
  message = stopped.value.code
  step = int(message.split('step ')[1].split(' ')[0])
  [file] = (tmp_path / 'diverged').glob('*.npz')
  assert str(file) in message and '\n' not in message
  batch = np.load(file)
  assert batch['step'] == step and batch['tokens'].shape == (8, 16)
  # The parameters before it gave the loss: they are not good, and are out of the way.
  assert f'step {step} is not finite (loss=' in message
  steps = bucket.steps_on_disk(tmp_path / 'checkpoints')
  assert (tmp_path / 'diverged' / f'{step - 1}.0').is_dir() and step - 1 not in steps
  said = f'the last good checkpoint is of step {steps[-1]}' if steps else 'no good checkpoint'
  assert said in message and '--fork' in message
  # What the line advises works.
  train(tiny_config(**{'train.checkpoint_every': 1, 'train.steps': 4} | PLAIN), tmp_path, fork=True)
  assert workdir.finished_step(tmp_path) == 4
  assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()
  assert all(np.isfinite(x).all() for x in params_of(tmp_path).values())


def test_an_update_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
  """The step's own loss and gradient are fine, and so is the checkpoint before it."""
  config = tiny_config(**{'train.checkpoint_every': 1, 'train.steps': 3} | PLAIN)
  save = startup.Run.save

  def save_broken(run, *arguments):
    if int(run.state.step) == 2:
      broken = jax.tree.map(lambda x: x * np.inf, run.state.params)
      run.state = dataclasses.replace(run.state, params=broken)
    save(run, *arguments)

  with monkeypatch.context() as patch, pytest.raises(loop.Diverged) as stopped:
    patch.setattr(startup.Run, 'save', save_broken)
    train(config, tmp_path)
  assert 'step 2 is not finite (params/' in stopped.value.code
  assert 'the last good checkpoint is of step 1;' in stopped.value.code
  assert bucket.steps_on_disk(tmp_path / 'checkpoints') == [1]
  train(config, tmp_path)
  assert workdir.finished_step(tmp_path) == 3


def test_a_validation_loss_that_is_not_finite_is_null(tmp_path, monkeypatch, capsys):
  """It ends nothing, is never the best, and no JSON file holds it."""
  measured = evaluation.during_training
  losses = iter([1.0, np.nan, np.inf, 2.0])

  def during_training(*arguments):
    found = measured(*arguments)
    loss = next(losses)
    return {name: {**row, 'cross_entropy': loss, 'perplexity': loss} for name, row in found.items()}

  changes = {'train.steps': 4, 'train.eval_every': 1, 'train.checkpoint_every': 1}
  with monkeypatch.context() as patch:
    patch.setattr(evaluation, 'during_training', during_training)
    train(tiny_config(**changes | PLAIN | {'train.keep_checkpoints': 1}), tmp_path)
  assert [row['validation_cross_entropy'] for row in rows_of(tmp_path)] == [1.0, None, None, 2.0]
  assert bucket.steps_on_disk(tmp_path / 'checkpoints') == [1, 4]
  files = [p for p in tmp_path.rglob('*') if p.is_file() and p.suffix in ('.json', '.jsonl')]
  assert len(files) >= 4
  for file in files:
    for line in file.read_text().splitlines():
      assert not re.search(r'\b(NaN|Infinity)\b', line), file
  assert (tmp_path / 'figures' / 'training.png').exists()
