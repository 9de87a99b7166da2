"""Compiled programs are kept in the cache folder, so that a second start does not wait for them."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from crt_jax import storage

LARGEST_BYTES = 4 << 30  # of all programs; beyond it those are removed that were read longest ago
_CPU = Path('/proc/cpuinfo')
_KIND = ('model name', 'flags', 'CPU part', 'Features')  # the last two on Arm


def keep_programs() -> None:
  """Tells JAX, which must not be imported yet, where to keep the programs that it compiles.

  What the environment says already (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false)
  stays. Nothing is kept where the folder cannot be written, nor on processors with the 'gds' bug
  of Intel: XLA complains there about each program that it finds (issue 38445 of JAX).
  """
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    with contextlib.suppress(OSError, ValueError):
      _keep_programs(_CPU.read_text('utf-8').partition('\n\n')[0])


def _keep_programs(cpu: str) -> None:
  about = {name.strip(): value for name, _, value in (x.partition(':') for x in cpu.splitlines())}
  if 'gds' in about.get('bugs', '').split():
    return
  # JAX's own key does not hold the instructions that the program of a CPU was compiled for.
  what = [platform.machine(), *(about.get(name, '') for name in _KIND)]
  programs = storage.cache_folder() / 'programs'
  folder = programs / hashlib.sha256('\n'.join(what).encode()).hexdigest()[:8]
  folder.mkdir(parents=True, exist_ok=True)
  if os.access(folder, os.W_OK):
    _remove_oldest(programs)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')


def _remove_oldest(programs: Path) -> None:
  """Removes what was read longest ago; JAX would take a lock for each program that it reads."""
  found = [(path.stat(), path) for path in programs.glob('*/*-cache')]
  size = 0
  for about, path in sorted(found, key=lambda one: -one[0].st_atime):
    size += about.st_size
    if size > LARGEST_BYTES:
      path.unlink(missing_ok=True)
