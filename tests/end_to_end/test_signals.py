"""SIGTERM, SIGHUP and Ctrl-C at any moment of a run's life, with nothing compiled before.

A dozen moments are tried in the slow suite; `make test-signals` tries all, 0.25 s apart.
"""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests.conftest import QUICK_COMPILER
from tests.end_to_end import runs

pytestmark = pytest.mark.slow

CODES = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
FIRST, APART = 0.3, 0.25  # seconds: Python itself takes some time before a program can listen
ALL = bool(os.environ.get('CRT_JAX_ALL_MOMENTS'))
SIZES = (
  '--config.model.depth_min=0',  # one program to compile
  '--config.train.steps=60',
  '--config.train.checkpoint_every=10',
  '--config.eval.batches=40',
  '--config.eval.sequential=True',
)


@pytest.fixture(scope='module', autouse=True)
def _heard():
  """A run keeps ignoring what its parent ignores, as under nohup or behind a script's `&`."""
  before = {number: signal.getsignal(number) for number in CODES}
  for number, handler in before.items():
    if handler == signal.SIG_IGN:
      signal.signal(number, lambda *_: None)  # a child of it gets the default
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.fixture(scope='module')
def tokens(tmp_path_factory):
  """The tokenised text, which all runs share."""
  return tmp_path_factory.mktemp('tokens')


def start(path, tokens, *flags):
  cold = {'JAX_ENABLE_COMPILATION_CACHE': 'false', 'XLA_FLAGS': QUICK_COMPILER}
  return runs.start(path, tokens, *flags, sizes=SIZES, extra=cold)


def start_two(path, tokens):
  with socket.create_server(('localhost', 0)) as server:
    address = f'--coordinator=localhost:{server.getsockname()[1]}'
  flags = [(address, '--num_processes=2', f'--process_id={i}') for i in range(2)]
  return [start(path, tokens, *two, '--config.mesh.data=2') for two in flags]


@pytest.fixture(scope='module')
def life(tmp_path_factory, tokens):
  """Seconds from the start of a run to its end, by the number of its processes."""

  def measured(processes):
    since = time.monotonic()
    for process in processes:
      out, _ = process.communicate(timeout=300)
      assert process.returncode == 0, out
    return time.monotonic() - since

  folder = tmp_path_factory.mktemp('life')
  measured([start(folder / 'first', tokens)])  # tokenises
  return {
    1: measured([start(folder / 'one', tokens)]),
    2: measured(start_two(folder / 'two', tokens)),
  }


def moments(life, count):
  """All moments of a life, or `count` of them, from the first to the last."""
  number = int((life - FIRST) / APART) + 1
  chosen = range(number) if ALL else {round(i * (number - 1) / (count - 1)) for i in range(count)}
  return [FIRST + APART * i for i in sorted(chosen)]


def check_end(code, out, number, path):
  """The exit code is the signal's, or that of a run that had ended; what was said is true."""
  assert 'Traceback' not in out and 'Fatal Python error' not in out, out
  if code == 0:
    assert (path / 'finished.json').exists()
    return
  assert code == CODES[number], f'exit code {code}\n{out}'
  folder = path / 'checkpoints'
  steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
  saved = f'saved at step {max(steps)};' if steps else 'there was nothing to save yet;'
  assert saved in out and 'run the same command to continue' in out, out


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_run_alone(tmp_path, tokens, life, number):
  for moment in moments(life[1], 3):
    path = tmp_path / f'{moment:.2f}'
    process = start(path, tokens)
    time.sleep(moment)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    check_end(process.returncode, out, number, path)


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)]
)
def test_one_of_two_processes(tmp_path, tokens, life, number):
  """Before they have met, the other one waits in vain: it is ended here."""
  for index, moment in enumerate(moments(life[2], 3)):
    path = tmp_path / f'{moment:.2f}'
    other, hit = start_two(path, tokens)[:: 1 - 2 * (index % 2)]
    time.sleep(moment)
    hit.send_signal(number)
    out, _ = hit.communicate(timeout=60)
    check_end(hit.returncode, out, number, path)
    try:
      said, _ = other.communicate(timeout=30)
    except subprocess.TimeoutExpired:
      other.terminate()
      said, _ = other.communicate(timeout=30)
      assert other.returncode == 75 and 'there was nothing to save yet' in said, said
    else:
      assert other.returncode == hit.returncode, said


def test_a_hangup_saves(tmp_path, tokens):
  process = start(tmp_path / 'run', tokens)
  runs.wait_for_step(process, 20)
  process.send_signal(signal.SIGHUP)
  out, _ = process.communicate(timeout=60)
  check_end(process.returncode, out, signal.SIGHUP, tmp_path / 'run')
  assert 'stopped by SIGHUP: saved at step' in out


def test_a_second_ctrl_c_leaves_at_once(tmp_path, tokens):
  slow = ('--config.data.batch_size=4096', '--config.data.sequence_length=64')
  process = start(tmp_path / 'run', tokens, *slow)
  runs.wait_for_step(process, 1)
  process.send_signal(signal.SIGINT)
  time.sleep(0.2)  # a step takes longer
  process.send_signal(signal.SIGINT)
  out, _ = process.communicate(timeout=10)
  assert process.returncode == 130, out
  assert 'interrupted: saving after this step; once more to leave at once' in out
  assert 'interrupted: left without saving; there was nothing to save yet' in out


def test_an_evaluation_goes_on_where_it_was(tmp_path, tokens):
  """The numbers are those of one that was not stopped, and no batch is scored twice."""
  long = ('--config.eval.whole=True', '--config.train.steps=1')
  whole, path = tmp_path / 'whole', tmp_path / 'run'
  partial = path / 'evaluation.partial.json'
  assert ended(start(whole, tokens, *long)) == 0
  before = 0
  for _ in range(2):
    process = start(path, tokens, *long)
    assert runs.wait_until(lambda least=before: scored(partial) > least, 120)
    process.send_signal(signal.SIGTERM)
    assert ended(process, 'saved at step 1;') == 75
    assert scored(partial) > before
    before = scored(partial)
  assert ended(start(path, tokens, *long)) == 0
  assert not partial.exists()
  results = [json.loads((run / 'evaluation.json').read_text())['results'] for run in (whole, path)]
  assert results[0] == results[1]


def ended(process, said=''):
  out, _ = process.communicate(timeout=300)
  assert said in out
  return process.returncode


def scored(partial):
  """How many targets an evaluation that is not finished has scored."""
  if not partial.exists():
    return 0
  parts = json.loads(partial.read_text())['parts'].values()
  return sum(part.get('sums', part.get('record', {})).get('targets', 0) for part in parts)
