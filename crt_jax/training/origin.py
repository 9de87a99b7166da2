"""What a number was made with: every record of a run says so."""

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


def origin() -> dict:
  """Returns what a number was made with: command, commit, time, hardware and versions."""
  return {
    'command': command(),
    'commit': commit(),
    'at': now(),
    'python': platform.python_version(),
    'versions': versions(),
    'platform': jax.default_backend(),
    'device': device_name(),
    'devices': jax.device_count(),
  }


def versions() -> dict[str, str]:
  """Returns the versions of the packages that decide what a step computes."""
  return {module.__name__: module.__version__ for module in (jax, flax, optax, orbax.checkpoint)}


def command() -> str:
  """Returns what was typed, as `python -m module --flag=value`, without the path of the module."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  program = f'python -m {spec.name}' if spec else os.path.basename(sys.argv[0])
  return ' '.join([program.removesuffix('.__main__'), *sys.argv[1:]])


def device_name() -> str:
  """Returns the kind of the devices; for a CPU its model and how many cores this process has."""
  kind = jax.devices()[0].device_kind
  if jax.default_backend() != 'cpu':
    return kind
  described = pathlib.Path('/proc/cpuinfo')
  lines = described.read_text('utf-8').splitlines() if described.exists() else []
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return f'{names[0] if names else platform.machine()} ({cores} cores)'


@functools.cache
def commit() -> str:
  """Returns the commit of the source this runs from, '' where it is installed without one."""
  command = ['git', '-C', str(pathlib.Path(__file__).parent), 'rev-parse', 'HEAD']
  try:
    return subprocess.run(command, capture_output=True, encoding='utf-8', timeout=5).stdout.strip()
  except (OSError, subprocess.TimeoutExpired):
    return ''


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
