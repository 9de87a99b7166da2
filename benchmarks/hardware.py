"""What a result was measured on: hardware, versions, commit."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax


def describe() -> dict:
  """Fields that every committed result carries."""
  versions = {}
  for package in ('jax', 'jaxlib', 'flax', 'optax', 'grain', 'torch', 'numpy'):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return dict(
    hardware=dict(
      device=jax.devices()[0].device_kind,
      devices=jax.device_count(),
      cpu=_cpu_name(),
      cores=os.cpu_count(),
      memory_gb=round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
    ),
    versions=dict(python=platform.python_version(), **versions),
    commit=_commit(),
    date=datetime.date.today().isoformat(),
  )


def _cpu_name() -> str:
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    if line.startswith('model name'):
      return line.split(':', 1)[1].strip()
  return platform.processor()


def _commit() -> str:
  root = pathlib.Path(__file__).parent
  command = ['git', 'rev-parse', '--short', 'HEAD']
  done = subprocess.run(command, cwd=root, capture_output=True, text=True)
  return done.stdout.strip() or 'unknown'
