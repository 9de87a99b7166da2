"""Which process this one is: flags, launchers, and every kind of half a cluster."""

import socket
import subprocess
import sys

import pytest

from crt_jax.cluster import launcher, preemption
from crt_jax.cluster.launcher import Place, find_place

ALONE = dict(environ={}, detect=lambda kubernetes: None)
SLURM = Place('node1:61440', 4, 2)


def slurm(kubernetes):
  del kubernetes
  return SLURM


def test_alone_is_no_place():
  assert find_place('auto', **ALONE) is None
  assert find_place('off', **ALONE) is None
  assert find_place('off', environ={'SLURM_NTASKS': '4'}, detect=slurm) is None
  one = Place('node1:61440', 1, 0)
  assert find_place('auto', environ={}, detect=lambda _: one) is None
  assert find_place('on', environ={}, detect=lambda _: one) == one


def test_flags_and_launcher_complete_each_other():
  assert find_place('auto', 'a:1', 2, 1, **ALONE) == Place('a:1', 2, 1)
  assert find_place('auto', environ={}, detect=slurm) == SLURM
  assert find_place('on', 'other:5', environ={}, detect=slurm) == Place('other:5', 4, 2)
  # Newer Open MPI says how many there are, but not where they meet.
  ranks = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'}
  assert find_place('auto', 'a:1', environ=ranks, detect=lambda _: None) == Place('a:1', 2, 1)
  address = {**ranks, 'JAX_COORDINATOR_ADDRESS': 'b:2'}
  assert find_place('auto', environ=address, detect=lambda _: None) == Place('b:2', 2, 1)


def test_kubernetes_is_asked_only_where_that_is_wanted():
  asked = []
  for mode in ('auto', 'on'):
    with pytest.raises(ValueError) if mode == 'on' else pytest.MonkeyPatch.context():
      find_place(mode, environ={}, detect=asked.append)
  assert asked == [False, True]


@pytest.mark.parametrize(
  ('arguments', 'environ', 'message'),
  [
    (('on',), {}, '--distributed=on: no launcher .*--coordinator=HOST:PORT, --num_processes=N'),
    (('auto', None, 2), {}, '--num_processes=2 is incomplete.*--coordinator and --process_id must'),
    (
      ('auto', 'a:1', 2),
      {},
      '--coordinator=a:1, --num_processes=2 is incomplete.*: --process_id must',
    ),
    (('auto', 'a', 2, 0), {}, '--coordinator=a must be HOST:PORT'),
    (('auto', 'a:1', 2, 2), {}, '--process_id=2 must lie between 0 and 1'),
    (('auto', 'a:1', 0, 0), {}, '--num_processes=0 must be at least 1'),
    (('off', None, None, 1), {}, '--process_id=1 contradicts --distributed=off'),
    (('auto',), {'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, 'SLURM_NTASKS=4 .*with srun'),
    (('auto',), {'OMPI_COMM_WORLD_SIZE': '2'}, 'OMPI_COMM_WORLD_SIZE=2 .*add --coordinator'),
    (('auto',), {'PMI_SIZE': '8'}, 'PMI_SIZE=8 announces 8 processes'),
    (('auto',), {'TPU_WORKER_HOSTNAMES': 'a,b'}, 'TPU_WORKER_HOSTNAMES=a,b .*tpu'),
    (('auto',), {'JAX_COORDINATOR_ADDRESS': 'a:1'}, '--coordinator=a:1 is incomplete'),
  ],
)
def test_half_a_cluster_is_refused(arguments, environ, message):
  with pytest.raises(ValueError, match=message):
    find_place(*arguments, environ=environ, detect=lambda _: None)


def test_one_task_of_slurm_is_alone():
  assert find_place('auto', environ={'SLURM_NTASKS': '1'}, detect=lambda _: None) is None


def test_jax_reads_the_launchers(monkeypatch):
  """Names of JAX that are not public: this fails first when a version moves them."""
  assert launcher.detect_launcher(False) is None
  announced = dict(JOB_ID='7', STEP_NODELIST='node[3-4]', NTASKS='2', PROCID='1', LOCALID='0')
  for name, value in announced.items():
    monkeypatch.setenv(f'SLURM_{name}', value)
  assert launcher.detect_launcher(True) == Place('node3:61447', 2, 1)


@pytest.mark.parametrize(
  ('place', 'message'),
  [
    ("Place('127.0.0.1:9', 3, 2)", 'process 2 of 3 waited 1 s: the coordinator at 127.0.0.1:9 '),
    ("Place('localhost:47123', 2, 0)", 'process 0 of 2 waited 1 s: not all of the others came to'),
  ],
)
def test_waiting_for_the_others_is_bounded(place, message):
  code = f'from crt_jax.cluster.launcher import *; join({place}, timeout=1.0)'
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
  assert ended.returncode == 2, ended.stderr
  lines = [line for line in ended.stderr.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1 and message in lines[0], ended.stderr


def test_a_port_in_use_is_said():
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(ValueError, match=f'process 0 of 2 cannot listen at .*:{port}'):
      launcher.join(Place(f'localhost:{port}', 2, 0), 1.0)


def test_processes_ask_each_other_about_once_a_second():
  assert preemption.steps_between(0.01) == 100
  assert preemption.steps_between(5.0) == 1
  assert preemption.steps_between(float('inf')) == 1
  assert preemption.steps_between(0.0) == preemption.MOST_STEPS
