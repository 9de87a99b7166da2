"""Which process this is among how many, and how the processes meet.

One run may be many processes, one a host or one a GPU, each started with the same command. They are
found by flags, or as the launcher announces them: Slurm, Open MPI and Google's TPUs by themselves,
Kubernetes where it is asked for; JAX reads all of these. A launcher that announces several
processes without saying where they meet is an error: each of them would train the whole model alone
and write into the same directory.
"""

import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from crt_jax.cluster.preemption import leave
from crt_jax.program import install

GIVE_UP = 2  # exit code

# If a process sends no heartbeat for so long, JAX ends the others.
HEARTBEAT_SECONDS = 60

# Variables in which launchers announce the number of processes and the rank of this one.
ANNOUNCED = {
  'SLURM_NTASKS': 'SLURM_PROCID',
  'OMPI_COMM_WORLD_SIZE': 'OMPI_COMM_WORLD_RANK',
  'PMI_SIZE': 'PMI_RANK',
}
ADDRESS = 'JAX_COORDINATOR_ADDRESS'  # which JAX reads too


@dataclasses.dataclass(frozen=True)
class Place:
  """The place of this process among all processes of the run.

  Attributes:
    coordinator: HOST:PORT where process 0 listens and all meet.
    num_processes: how many there are.
    process_id: which one this is, from 0.
  """

  coordinator: str
  num_processes: int
  process_id: int

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise ValueError(
        f'--coordinator={self.coordinator} must be HOST:PORT of process 0, as in 10.0.0.1:1234'
      )
    if self.num_processes < 1:
      raise ValueError(f'--num_processes={self.num_processes} must be at least 1')
    if not 0 <= self.process_id < self.num_processes:
      raise ValueError(
        f'--process_id={self.process_id} must lie between 0 and {self.num_processes - 1} '
        f'(--num_processes={self.num_processes})'
      )

  def __str__(self) -> str:
    return f'process {self.process_id} of {self.num_processes}'


def find_place(
  mode: str = 'auto',
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  environ: Mapping[str, str] = os.environ,
  detect: Callable[[bool], Place | None] | None = None,
) -> Place | None:
  """Returns the place of this process, or None if it is the only one.

  Args:
    mode: 'auto' takes what flags or the launcher say, 'on' refuses to be alone, 'off' is alone
      whatever the launcher says.
    coordinator, num_processes, process_id: flags; those left out are the launcher's.
    environ: where launchers announce themselves.
    detect: whether to ask Kubernetes too -> what JAX finds of the launcher; for tests.

  Raises:
    ValueError: flags or launcher say half of it.
  """
  given = {
    '--coordinator': coordinator or environ.get(ADDRESS) or None,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  if mode == 'off':
    flags = {'--coordinator': coordinator, **dict(list(given.items())[1:])}
    for name, value in flags.items():
      if value is not None:
        raise ValueError(f'{name}={value} contradicts --distributed=off; leave one of them out')
    return None
  found = (detect or detect_launcher)(mode == 'on')
  if found is not None:
    whole = dataclasses.astuple(found)
  else:
    whole = (None, *_announced(environ)[1:])
  values: list[Any] = [
    g if g is not None else w for g, w in zip(given.values(), whole, strict=True)
  ]
  if any(value is not None for value in given.values()):
    missing = [name for name, value in zip(given, values, strict=True) if value is None]
    if missing:
      said = ', '.join(f'{name}={value}' for name, value in given.items() if value is not None)
      raise ValueError(
        f'{said} is incomplete: {" and ".join(missing)} must be given too, since no launcher '
        'was found'
      )
    return Place(*values)
  if found is not None:
    return found if mode == 'on' or found.num_processes > 1 else None
  _refuse_half_a_cluster(environ)
  if mode == 'on':
    raise ValueError(
      '--distributed=on: no launcher was found; give --coordinator=HOST:PORT, '
      '--num_processes=N and --process_id=I, or leave it out on one machine'
    )
  return None


def _announced(environ: Mapping[str, str]) -> tuple[str, int | None, int | None]:
  """Returns the variable, size and rank of a launcher that announces several processes."""
  for size, rank in ANNOUNCED.items():
    if environ.get(size, '1').isdigit() and int(environ.get(size, '1')) > 1:
      at = environ.get(rank, '')
      return size, int(environ[size]), int(at) if at.isdigit() else None
  return '', None, None


def _refuse_half_a_cluster(environ: Mapping[str, str]) -> None:
  """Raises ValueError if a launcher announces several processes that JAX cannot connect."""
  variable, size, _ = _announced(environ)
  alone = 'or say --distributed=off to run alone'
  if variable == 'SLURM_NTASKS':
    raise ValueError(
      f'SLURM_NTASKS={size} announces {size} processes, but this one was not started by srun; '
      f'start it with srun, {alone}'
    )
  if variable:
    raise ValueError(
      f'{variable}={size} announces {size} processes, but not where they meet; add '
      f'--coordinator=HOST:PORT of process 0, {alone}'
    )
  hosts = environ.get('TPU_WORKER_HOSTNAMES', '')
  if ',' in hosts:
    raise ValueError(
      f'TPU_WORKER_HOSTNAMES={hosts} announces several hosts, but no TPU software is installed '
      f'here: {install("tpu")}, {alone}'
    )


def detect_launcher(kubernetes: bool) -> Place | None:
  """Returns what JAX's own launcher detection finds, None if it finds no launcher.

  Kubernetes is asked only on request: an indexed Job may as well be many runs as one.
  """
  from jax._src import clusters  # JAX has no public name for it; the same in 0.10 to 0.12

  names = ['OmpiCluster', 'SlurmCluster', 'GkeTpuCluster', 'GceTpuCluster']
  for name in names + ['K8sCluster'] * kubernetes:
    launcher = getattr(clusters, name)
    if launcher.is_env_present():
      port = os.environ.get('JAX_COORDINATOR_PORT')
      address = launcher.get_coordinator_address(timeout_secs=60, override_coordinator_port=port)
      return Place(address, launcher.get_process_count(), launcher.get_process_id())
  return None


def join(place: Place, timeout: float) -> None:
  """Connects to the other processes; must run before JAX looks for devices.

  Args:
    timeout: seconds to wait for them. Then one line says who waited where, and the process ends
      with code 2: JAX itself would abort without a word of ours.

  Raises:
    ValueError: process 0 cannot listen at the coordinator's port.
  """
  if place.process_id == 0:
    _check_port(place)
  joined = threading.Event()
  threading.Thread(target=_give_up, args=(place, timeout, joined), daemon=True).start()
  jax.config.update('jax_enable_preemption_service', False)  # it would replace our SIGTERM handler
  jax.distributed.initialize(
    place.coordinator,
    place.num_processes,
    place.process_id,
    initialization_timeout=int(timeout) + 60,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
  )
  joined.set()


def _check_port(place: Place) -> None:
  port = int(place.coordinator.rpartition(':')[2])
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  try:
    socket.create_server(('', port), family=family, dualstack_ipv6=dual).close()
  except OSError as error:
    raise ValueError(
      f'{place} cannot listen at --coordinator={place.coordinator} ({error.strerror}); '
      'choose another port for all processes'
    ) from None


def _give_up(place: Place, timeout: float, joined: threading.Event) -> None:
  """Ends the process, after one line, unless it connects in time."""
  if joined.wait(timeout):
    return
  if place.process_id == 0:
    reason = f'not all of the others came to {place.coordinator}; start all with the same command'
  else:
    answer = _try(place.coordinator)
    reason = f'the coordinator at {place.coordinator} ' + (
      f'does not answer ({answer}); is process 0 running, and is this its address?'
      if answer
      else 'answers, but not all processes came'
    )
  print(f'error: {place} waited {timeout:g} s: {reason}', file=sys.stderr, flush=True)
  leave(GIVE_UP)


def _try(address: str) -> str:
  """Returns why nothing answers at HOST:PORT, '' if something does."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
  except OSError as error:
    return error.strerror or str(error)
  return ''


def wait_until(ready: Callable[[], bool], seconds: float) -> bool:
  """Polls until a condition holds or the time is up; returns whether it holds."""
  end = time.monotonic() + seconds
  while not ready():
    if time.monotonic() > end:
      return False
    time.sleep(0.1)
  return True
