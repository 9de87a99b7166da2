"""crt-tasks: what is refused before the harness is asked for, and how to get it."""

import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from crt_jax.cli import Mistake, tasks
from crt_jax.evaluation import harness
from crt_jax.training import ending
from tests.contract.models import model_of


@pytest.mark.parametrize(
  'given, message',
  (
    (dict(tasks=[]), '--tasks is missing, as in'),
    (dict(output=None), '--output is missing, as in'),
    (dict(limit=0.0), '--limit=0 leaves no document'),
    (dict(depth=['1', 'two']), '--depth=1,two: expected whole numbers'),
  ),
)
def test_mistakes(given, message):
  flags.FLAGS.mark_as_parsed()
  whole = dict(tasks=['piqa'], output='scores', workdir='run') | given
  with flagsaver.flagsaver(**whole), pytest.raises(Mistake, match=message):
    tasks.main([])


def test_the_harness_is_no_dependency(monkeypatch):
  monkeypatch.setitem(sys.modules, 'lm_eval.tasks', None)
  with pytest.raises(ValueError, match=r"pip install -e '.*\[tasks\]'"):
    harness.tasks_of(['piqa'])


def test_one_table():
  def row(form, depth, metric, value, stderr=None):
    used = depth != 1
    return dict(
      form=form, depth=depth, is_inference_metric=used, task='t', documents=8, metric=metric
    ) | dict(value=value, stderr=stderr)

  rows = [
    row('parallel', 1, 'acc', 0.25, 0.1),
    row('parallel', 1, 'perplexity', 2632.61),
    row('sequential', None, 'acc', 0.75, 0.2),
    row('sequential', None, 'perplexity', 9.5),
  ]
  assert ending.table_of_tasks(model_of('crt'), rows).splitlines() == [
    'task  documents  metric       K=1 *   exact      +-',
    't             8  acc         0.2500  0.7500  0.2000',
    't             8  perplexity  2632.6  9.5000',
    '* not a way to write text with it',
  ]
