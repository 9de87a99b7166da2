"""Two processes that split the batch and the parameters: the losses of one, and SIGTERM to both
loses nothing."""

import signal

import numpy as np
import pytest

from tests.end_to_end import runs
from tests.training.tiny import assert_same_bits, params_of, rows_of

pytestmark = pytest.mark.slow
SIZES = (
  '--config.model.depth_min=0',  # one program to compile
  '--config.train.steps=60',
  '--config.train.checkpoint_every=20',
  '--config.train.log_every=5',
)


def start_two(workdir, cache, port_seed):
  """Starts both as Slurm would; JAX derives the coordinator's port from the job."""
  processes = []
  for rank in range(2):
    cluster = {
      'SLURM_JOB_ID': str(port_seed),
      'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_NTASKS': '2',
      'SLURM_PROCID': str(rank),
      'SLURM_LOCALID': str(rank),
    }
    flags = ('--distributed', '--config.mesh.fsdp=2', '--config.eval.whole=True')
    processes.append(runs.start(workdir, cache, *flags, sizes=SIZES, extra=cluster))
  return processes


def finish_two(processes):
  outs = [process.communicate(timeout=600)[0] for process in processes]
  return [process.returncode for process in processes], outs


def test_two_processes(tmp_path_factory, tmp_path):
  cache = tmp_path_factory.mktemp('tokens')
  code, out = runs.finish(tmp_path / 'one', cache, sizes=SIZES)
  assert code == 0, out
  codes, outs = finish_two(start_two(tmp_path / 'two', cache, 4301))
  assert codes == [0, 0], outs
  one, two = rows_of(tmp_path / 'one'), rows_of(tmp_path / 'two')
  assert [row['step'] for row in two] == [row['step'] for row in one]
  np.testing.assert_allclose([row['loss'] for row in two], [row['loss'] for row in one], rtol=1e-5)

  stopped = start_two(tmp_path / 'stopped', cache, 4302)
  runs.wait_for_step(stopped[0], 15)
  for process in stopped:
    process.send_signal(signal.SIGTERM)
  codes, outs = finish_two(stopped)
  assert codes == [75, 75], outs
  codes, outs = finish_two(start_two(tmp_path / 'stopped', cache, 4303))
  assert codes == [0, 0], outs
  assert 'continuing after step' in outs[0]
  assert_same_bits(params_of(tmp_path / 'stopped'), params_of(tmp_path / 'two'))
