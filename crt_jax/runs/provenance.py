"""The origin of a number: command, commit, time, hardware and package versions."""

import datetime
import functools
import os
import pathlib
import platform
import subprocess
import sys

import flax
import jax
import optax
import orbax.checkpoint

from crt_jax.program import program


def origin() -> dict:
  """Returns the origin of a number: command, commit, time, hardware, its load and versions."""
  return {
    'command': command(),
    'commit': commit(),
    'at': now(),
    'python': platform.python_version(),
    'versions': versions(),
    'platform': jax.default_backend(),
    'device': device_name(),
    'processor': processor(),
    'devices': jax.device_count(),
    'load': round(os.getloadavg()[0], 2),  # mean number of running processes in the last minute
  }


def versions() -> dict[str, str]:
  """Returns the versions of the packages that decide what a step computes."""
  return {module.__name__: module.__version__ for module in (jax, flax, optax, orbax.checkpoint)}


def command() -> str:
  """Returns the command as typed, `python -m module --flag=value`, without the module's path."""
  return ' '.join([program(), *sys.argv[1:]])


def device_name() -> str:
  """Returns the kind of the devices; for a CPU its name and the number of usable cores."""
  kind = jax.devices()[0].device_kind
  if jax.default_backend() != 'cpu':
    return kind
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  unit = 'core' if cores == 1 else 'cores'
  return f'{_cpuinfo().get("model name", platform.machine())} ({cores} {unit})'


def processor() -> str:
  """Returns 'family 25, model 17' or the like of the CPU, '' where it is not said.

  Clouds give one name to processors of several generations, whose ratios of speed differ.
  """
  about, words = _cpuinfo(), {'cpu family': 'family', 'model': 'model'}
  return ', '.join(f'{word} {about[key]}' for key, word in words.items() if key in about)


def _cpuinfo() -> dict[str, str]:
  described = pathlib.Path('/proc/cpuinfo')
  lines = described.read_text('utf-8').splitlines() if described.exists() else []
  return {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}


@functools.cache
def commit() -> str:
  """Returns the commit of the clone that this runs from, '' where it is installed from a wheel."""
  folder = str(pathlib.Path(__file__).parents[1])
  command = ['git', '-C', folder, 'rev-parse', '--show-prefix', 'HEAD']
  try:
    said = subprocess.run(command, capture_output=True, encoding='utf-8', timeout=5).stdout
  except (OSError, subprocess.TimeoutExpired):
    return ''
  place, _, head = said.strip().partition('\n')
  return head if place == 'crt_jax/' else ''  # else the commit is of a project around the wheel


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
