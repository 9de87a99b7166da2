"""A fork with another optimiser: its state may have another structure than the saved one."""

import shutil

import pytest

from crt_jax.runs import lock, workdir
from crt_jax.training import loop
from tests.training.tiny import PLAIN, contents, tiny_config, train

pytestmark = pytest.mark.usefixtures('caches')


FORKS = {
  'optimizer.clip_norm': 0.0,
  'optimizer.weight_decay': 0.0,
  'optimizer.frozen': ('embedding',),
}


@pytest.mark.parametrize('field', FORKS)
def test_a_fork_with_another_optimizer_is_refused_before_anything_is_read(stopped_run, field):
  config = tiny_config(**{'train.steps': 6, field: FORKS[field]} | PLAIN)
  before = contents(stopped_run / 'checkpoints')
  with pytest.raises(ValueError, match=rf'another structure \({field} was ') as caught:
    train(config, stopped_run, fork=True)
  said = str(caught.value)
  assert f'--config.train.init_from={stopped_run}' in said and '--fork --reset_optimizer' in said
  assert contents(stopped_run / 'checkpoints') == before
  assert not (stopped_run / 'damaged').exists() and workdir.finished_step(stopped_run) == 4


def test_a_fork_may_begin_the_state_of_its_optimizer_anew(stopped_run, tmp_path, capsys):
  path = tmp_path / 'run'
  shutil.copytree(stopped_run, path)
  config = tiny_config(**{'train.steps': 5, 'optimizer.clip_norm': 0.0} | PLAIN)
  for said in ('continuing after step 4', 'nothing to do'):  # run again, as a cluster does
    with lock.released():
      loop.train(config, path, fork=True, reset_optimizer=True)
    assert said in capsys.readouterr().out
  assert workdir.finished_step(path) == 5


@pytest.fixture(scope='module')
def stopped_run(tmp_path_factory):
  """A run of four steps."""
  path = tmp_path_factory.mktemp('runs') / 'stopped'
  train(tiny_config(**{'train.steps': 4} | PLAIN), path)
  return path
