"""--mode=status: where a run stands, from its directory alone."""

import json
import os
import socket
import subprocess
import sys

import pytest

from crt_jax.runs import lock, standing


@pytest.fixture
def run(tmp_path):
  """Writes the directory of a run at step 40 of 100."""
  config = {'train': {'steps': 100}, 'data': {'batch_size': 4, 'sequence_length': 10}}
  (tmp_path / 'config.json').write_text(json.dumps({'config': config}))
  rows = [
    {'step': 20, 'loss': 3.5, 'validation_perplexity_a': 30.0, 'validation_perplexity_b': 7.25},
    {'step': 40, 'loss': 2.5, 'tokens_per_second': 8.0, 'training_seconds': 200.0},
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows) + '{"step": 6'
  (tmp_path / 'metrics.jsonl').write_text(text)  # a row is just being written
  (tmp_path / 'checkpoints' / '40').mkdir(parents=True)
  return tmp_path


def held_by(path, process, host=None):
  text = {'host': host or socket.gethostname(), 'process': process, 'since': 'S', 'refreshed': 'R'}
  (path / lock.NAME).write_text(json.dumps(text))


def test_a_run_that_trains(run):
  held_by(run, os.getpid())
  said = standing.describe(run)
  assert said.startswith(f'{run}: running, process {os.getpid()} on {socket.gethostname()} since S')
  for words in (
    'step         40 of 100 (40%)',
    'loss         2.500 at step 40',
    'perplexity a 30.00, b 7.250 at step 20',
    '8 tokens/s, about 5.0 minutes left to train',  # 60 steps of 40 tokens
    'trained for  3.3 minutes',
    'checkpoints  40',
  ):
    assert words in said
  held_by(run, 7, 'elsewhere')
  assert 'running, process 7 on elsewhere' in standing.describe(run)


def test_a_stop_between_two_rows_counts_to_its_checkpoint(run):
  (run / 'checkpoints' / '45').mkdir()
  said = standing.describe(run)
  assert 'step         45 of 100 (45%)' in said and 'loss         2.500 at step 40' in said


def test_a_run_that_nobody_trains(run):
  assert standing.describe(run).startswith(f'{run}: stopped\n')
  dead = subprocess.Popen(['true'])
  dead.wait()
  held_by(run, dead.pid)
  assert f': stopped: process {dead.pid} of this machine' in standing.describe(run)
  assert 'left to train' not in standing.describe(run)
  (run / 'finished.json').write_text('{}')
  assert standing.describe(run).startswith(f'{run}: finished\n')


def test_a_failure_is_kept_until_the_next_start(run):
  with pytest.raises(RuntimeError), standing.recording(run, True):
    raise RuntimeError('out of memory')
  assert 'last failure' in standing.describe(run)
  assert standing.describe(run).endswith('    RuntimeError: out of memory')
  with pytest.raises(SystemExit), standing.recording(run, True):
    raise SystemExit(75)  # stopped and saved
  assert 'last failure' not in standing.describe(run)
  with pytest.raises(SystemExit), standing.recording(run, True):
    raise SystemExit('error: step 7 is not finite')
  assert standing.describe(run).endswith('    error: step 7 is not finite')
  with pytest.raises(RuntimeError), standing.recording(run, False):
    raise RuntimeError('of another process')
  assert standing.describe(run).endswith('    error: step 7 is not finite')


def test_a_directory_without_a_run_is_a_mistake(tmp_path):
  with pytest.raises(ValueError, match='holds no run'):
    standing.describe(tmp_path)


def test_looking_does_not_import_jax(run):
  code = f'from crt_jax.runs import standing; import sys; print(standing.describe({str(run)!r}));'
  code += " sys.exit('jax' in sys.modules)"
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0 and 'step ' in done.stdout, done.stderr
