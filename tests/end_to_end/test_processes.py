"""Several processes of one run: the parameters of one process, ends that all hear of, and starts
that are refused because the processes differ."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from crt_jax.cluster import launcher
from crt_jax.data.manifest import read_manifest, write_manifest
from crt_jax.data.token_files import TokenWriter
from crt_jax.runs.damage import UNREAD_SECONDS
from tests.conftest import QUICK_COMPILER
from tests.end_to_end import runs
from tests.training.tiny import assert_same_bits, params_of, rows_of

pytestmark = pytest.mark.slow
SIZES = (
  '--config.model.depth_min=0',  # one program to compile
  '--config.train.steps=24',
  '--config.train.checkpoint_every=6',
  '--config.train.eval_every=24',
  '--config.train.log_every=1',
)
SPLIT = '--config.mesh.fsdp=2'
LONGER = (*SIZES, '--config.train.steps=400')
# A compiler that is quick rather than good, as in tests/conftest.py; it is the same for all runs.
QUICK = {'XLA_FLAGS': QUICK_COMPILER}
PACE = '0.1'  # seconds that a step takes at least, where one is interrupted
BOUND = 60  # seconds in which the others have to end; a few on an idle machine
# Where they wait in a barrier of a checkpoint, only the heartbeat tells them of a killed one.
BOUND_KILLED = BOUND + launcher.HEARTBEAT_SECONDS


STARTED = []


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
  """A test that fails must not leave its processes to those that follow."""
  yield
  while STARTED:
    process = STARTED.pop()
    if process.poll() is None:
      process.kill()
      process.communicate()


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('tokens')


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cache):
  """One process with two devices: what several processes have to equal."""
  path = tmp_path_factory.mktemp('runs') / 'alone'
  run_alone(path, cache, SIZES)
  return path


def run_alone(path, cache, sizes):
  """One process with two devices, to the end."""
  devices = {**QUICK, 'JAX_NUM_CPU_DEVICES': '2'}
  code, out = runs.finish(path, cache, '--distributed=off', SPLIT, sizes=sizes, extra=devices)
  assert code == 0, out


def start(count, workdir, cache, sizes=SIZES, environments=None, flags=None, **options):
  """Starts all processes of a run; flags and variables of single ones by their number."""
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
  common = (f'--coordinator=localhost:{port}', f'--num_processes={count}')
  started = [
    runs.start(
      workdir,
      cache,
      *common,
      f'--process_id={rank}',
      *(flags or {}).get(rank, ()),
      sizes=sizes,
      extra=QUICK | (environments or {}).get(rank, {}),
      **options,
    )
    for rank in range(count)
  ]
  STARTED.extend(started)
  return started


def finish(processes, timeout=600):
  outs = [process.communicate(timeout=timeout)[0] for process in processes]
  return [process.returncode for process in processes], outs


@pytest.fixture
def other_host(tmp_path_factory):
  """The environment of a process whose host differs (other_host.py)."""
  folder = tmp_path_factory.mktemp('site')
  (folder / 'sitecustomize.py').write_text('import tests.end_to_end.other_host\n')
  path = f'{folder}{os.pathsep}{runs.ROOT}'
  return lambda **variables: {'PYTHONPATH': path, **variables}


def committed(path):
  return sorted(int(p.name) for p in (path / 'checkpoints').iterdir() if p.name.isdigit())


def wait_for_checkpoint(process, path):
  runs.wait_for_step(process, 8)
  assert runs.wait_until(lambda: committed(path), BOUND), 'the first checkpoint is written'


def error_lines(out):
  return [line for line in out.splitlines() if line.startswith('error: ')]


def test_two_processes_reach_the_parameters_of_one(tmp_path, cache, alone, other_host):
  """To the bit, as each sum has two terms; the clock of one host is a day ahead."""
  ahead = {1: other_host(OTHER_CLOCK='1')}
  codes, outs = finish(start(2, tmp_path, cache, (*SIZES, SPLIT), ahead))
  assert codes == [0, 0], outs
  assert_same_bits(params_of(tmp_path), params_of(alone))
  one, two = rows_of(alone), rows_of(tmp_path)
  assert [(row['step'], row['loss']) for row in two] == [(row['step'], row['loss']) for row in one]
  assert json.loads((tmp_path / 'finished.json').read_text())['step'] == 24
  assert 'step 24/24' in outs[0] and 'step ' not in outs[1], 'one process reports'
  assert 'split over' in (tmp_path / 'sharding.txt').read_text()


@pytest.mark.exhaustive
def test_two_processes_begin_with_the_trained_model_of_one(tmp_path, cache, alone):
  one, two = tmp_path / 'one', tmp_path / 'two'
  sizes = (*SIZES, '--config.train.steps=6', f'--config.train.init_from={alone}')
  run_alone(one, cache, sizes)
  codes, outs = finish(start(2, two, cache, (*sizes, SPLIT)))
  assert codes == [0, 0], outs
  assert f'begins with   step 24 of {alone}' in outs[0] and 'begins with' not in outs[1]
  assert_same_bits(params_of(two), params_of(one))
  assert rows_of(two)[0]['loss'] == rows_of(one)[0]['loss'] < 0.9 * rows_of(alone)[0]['loss']


def test_a_run_goes_on_after_kills_with_more_and_fewer_processes(
  tmp_path, cache, alone, other_host
):
  """SIGKILL of one of two, then four processes until SIGTERM to one, then two to the end: the
  losses are those of a run that was never interrupted, so every global batch was the same. The
  first two have clocks a day ahead: what they wrote is from the future of those that follow."""
  slow = dict.fromkeys(range(4), other_host(OTHER_PACE=PACE))
  ahead = dict.fromkeys(range(2), other_host(OTHER_PACE=PACE, OTHER_CLOCK='1'))
  two = start(2, tmp_path, cache, environments=ahead)
  wait_for_checkpoint(two[0], tmp_path)
  two[1].kill()
  killed = time.monotonic()
  codes, outs = finish(two, timeout=BOUND_KILLED)
  assert time.monotonic() - killed < BOUND_KILLED
  assert codes[1] == -signal.SIGKILL
  if codes[0] == 1:  # a collective broke
    assert 'process 0 of 2 lost another one' in outs[0], outs[0]
    assert 'run the same command' in outs[0]
  else:  # it waited in a checkpoint's barrier, where JAX's heartbeat ends it in JAX's words
    assert codes[0] == -signal.SIGABRT and 'another task died' in outs[0], outs
  kept = committed(tmp_path)
  assert kept

  four = start(4, tmp_path, cache, environments=slow)
  seen = runs.wait_for_step(four[0], kept[-1] + 2)
  assert f'continuing after step {kept[-1]}' in seen
  four[3].send_signal(signal.SIGTERM)
  codes, outs = finish(four)
  assert codes == [75] * 4, outs
  codes, outs = finish(start(2, tmp_path, cache))
  assert codes == [0, 0], outs
  losses = {row['step']: row['loss'] for row in rows_of(alone)}
  found = {row['step']: row['loss'] for row in rows_of(tmp_path)}
  assert list(found) == list(range(1, 25))
  for step, loss in found.items():  # four terms are added up in another order
    np.testing.assert_allclose(loss, losses[step], rtol=1e-5)


def test_when_the_first_process_dies_the_others_stop(tmp_path, cache, other_host):
  """JAX's coordination service dies with it: the words may be JAX's own then."""
  slow = dict.fromkeys(range(2), other_host(OTHER_PACE=PACE))
  two = start(2, tmp_path, cache, LONGER, slow)
  runs.wait_for_step(two[0], 2)
  two[0].kill()
  codes, outs = finish(two, timeout=BOUND)
  assert codes[1] not in (0, 75), outs
  assert 'lost another one' in outs[1] or 'leader task was preempted/died' in outs[1], outs[1]


def test_sigterm_before_the_first_step_stops_all(tmp_path, cache):
  processes = start(2, tmp_path / 'run', cache, LONGER)
  assert runs.wait_until(lambda: (tmp_path / 'run').exists(), BOUND)
  processes[1].send_signal(signal.SIGTERM)
  codes, outs = finish(processes)
  assert codes == [75, 75], outs


def refused(processes):
  """The one line with which all processes end."""
  codes, outs = finish(processes, timeout=BOUND)
  assert codes == [2] * len(codes), outs
  lines = {line for out in outs for line in error_lines(out)}
  assert all('Traceback' not in out for out in outs), outs
  assert len(lines) == 1, outs
  return lines.pop()


def test_another_config_is_refused_by_name(tmp_path, cache):
  flags = {1: ('--config.data.batch_size=16',)}
  line = refused(start(2, tmp_path / 'run', cache, flags=flags))
  assert 'process 1 of 2 has other config' in line
  assert 'data.batch_size is 16 there and 8 on process 0' in line
  assert not (tmp_path / 'run').exists()


def test_another_version_is_refused_by_name(tmp_path, cache, other_host):
  other = {1: other_host(OTHER_VERSION='0.0.1')}
  line = refused(start(2, tmp_path / 'run', cache, environments=other))
  assert 'process 1 of 2 has other versions' in line and "optax is '0.0.1' there" in line


def test_another_cache_of_tokens_is_refused_by_name(tmp_path, cache, alone):
  """A cache that is whole and says that it is of the same text, but has other tokens."""
  del alone  # has filled the cache
  [packed] = [p for p in cache.iterdir() if (p / 'manifest.json').exists()]
  mine = tmp_path / 'cache' / packed.name
  shutil.copytree(packed, mine)
  text = read_manifest(mine)
  del text['format_version']
  [shard] = text['splits']['train']['shards']
  tokens = np.fromfile(mine / shard['file'], text['dtype'])
  (mine / shard['file']).unlink()
  writer = TokenWriter(mine, 'train', 256)
  writer.write(tokens[::-1].copy())
  text['splits']['train']['shards'] = [dataclasses.asdict(s) for s in writer.close()]
  write_manifest(mine, text)
  other = {1: {'CRT_JAX_CACHE': str(tmp_path / 'cache')}}
  line = refused(start(2, tmp_path / 'run', cache, environments=other))
  assert 'process 1 of 2 has other data' in line and 'manifest of moby_dick' in line
  assert not (tmp_path / 'run').exists()


def test_a_full_disk_under_one_process_ends_all_and_keeps_the_last_checkpoint(
  tmp_path, cache, other_host
):
  """A limit on the size of files stands for the disk of one host, which fills after a while."""
  slow = dict.fromkeys(range(2), other_host(OTHER_PACE=PACE))
  split = (*LONGER, SPLIT)
  processes = start(2, tmp_path, cache, split, slow)
  wait_for_checkpoint(processes[0], tmp_path)
  resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (4_000, 4_000))
  codes, outs = finish(processes, timeout=2 * BOUND)
  assert codes == [2, 2], outs
  assert 'could not be written' in ''.join(error_lines(outs[1])), outs[1]
  assert 'process 1 of 2 stopped: a checkpoint could not be written' in outs[0], outs[0]
  kept = committed(tmp_path)
  again = start(2, tmp_path, cache, split, slow)
  out = runs.wait_for_step(again[0], kept[-1] + 1)
  assert f'continuing after step {kept[-1]}' in out


def unfinished(alone, path):
  """A copy of the run of one process, just before it was marked as finished."""
  shutil.copytree(alone, path)
  (path / 'finished.json').unlink()
  return path


def test_a_checkpoint_that_is_damaged_for_all_is_set_aside(tmp_path, cache, alone):
  path = unfinished(alone, tmp_path / 'run')
  (path / 'checkpoints/24/record/metadata').write_text('')
  codes, outs = finish(start(2, path, cache, (*SIZES, SPLIT)))
  assert codes == [0, 0], outs
  assert 'checkpoints/24 is damaged' in outs[0] and 'continuing after step 18' in outs[0], outs[0]
  assert [p.name for p in (path / 'damaged').iterdir()] == ['24.0']
  assert_same_bits(params_of(path), params_of(alone))


def test_a_checkpoint_that_one_process_cannot_read_ends_all_and_is_kept(tmp_path, cache, alone):
  """Damage in the part of the parameters that only this process reads: the other one waits for it
  in the middle of reading."""
  two = ('--config.train.steps=6', '--config.train.eval_every=6')
  path = tmp_path / 'run'
  codes, outs = finish(start(2, path, cache, (*SIZES, SPLIT, *two)))
  assert codes == [0, 0], outs
  (path / 'finished.json').unlink()
  files = [p for p in (path / 'checkpoints/6/params/ocdbt.process_1').rglob('*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  whole = largest.read_bytes()
  largest.write_bytes(bytes(len(whole)))
  codes, outs = finish(start(2, path, cache, (*SIZES, SPLIT, *two)), BOUND + UNREAD_SECONDS)

  assert codes == [2, 2], outs
  [line] = error_lines(outs[1])
  assert f'{path}/checkpoints/6 cannot be read by process 1 of 2' in line, line
  assert 'process 0 had no complaint' in line, line
  # Process 0 hears it from process 1, or finds its own reading broken off first.
  heard = f'process 1 of 2 stopped: {line.removeprefix("error: ")}'
  found = f'{path}/checkpoints/6 was given up: another process cannot read it'
  assert heard in outs[0] or found in outs[0], outs[0]
  assert committed(path) == [6] and not (path / 'damaged').exists()
  largest.write_bytes(whole)
  codes, outs = finish(start(2, path, cache, (*SIZES, SPLIT, *two)))
  assert codes == [0, 0] and 'damaged' not in ''.join(outs), outs


@pytest.mark.exhaustive
def test_two_processes_evaluate_a_checkpoint_as_one_does(tmp_path, cache, alone):
  """Each scores its rows on the mesh of the run; one of them writes the results."""
  results, outs = [], []
  for count in (1, 2):
    path = tmp_path / str(count)
    shutil.copytree(alone, path)
    (path / 'evaluation.json').unlink()
    codes, outs = finish(start(count, path, cache, ('--mode=eval',), config=None))
    assert codes == [0] * count, outs
    results.append(json.loads((path / 'evaluation.json').read_text())['results'])
  assert 'checkpoint of step 24; written to' in outs[0] and 'perplexity' not in outs[1]
  one, two = (found['sampled'] for found in results)
  assert one and [row['form'] for row in two] == [row['form'] for row in one]
  for a, b in zip(one, two, strict=True):
    assert b['targets'] == a['targets']
    np.testing.assert_allclose(b['cross_entropy'], a['cross_entropy'], rtol=1e-6)
