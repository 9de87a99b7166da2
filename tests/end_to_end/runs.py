"""Runs in processes of their own, to be killed: a tiny CRT whose parameters are compared bit for
bit."""

import os
import pathlib
import re
import subprocess
import sys

from crt_jax.cluster.launcher import wait_until  # noqa: F401

ROOT = pathlib.Path(__file__).parents[2]
SIZES = (
  '--config.train.steps=400',
  '--config.train.checkpoint_every=25',
  '--config.train.log_every=5',
)


def environment(cache):
  """That of a user: one CPU device. The runs of a file share tokens, those of a session compiled
  programs (tests/conftest.py)."""
  kept = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES')}
  return kept | {'JAX_PLATFORMS': 'cpu', 'CRT_JAX_CACHE': str(cache)}


def command(workdir, *overrides, config='tests/training/tiny.py', sizes=SIZES):
  of = [f'--config={config}'] if config else []  # --mode=eval finds it in the directory
  flags = [*of, f'--workdir={workdir}', *sizes, *overrides]
  return [sys.executable, '-m', 'experiments.main', *flags]


def start(workdir, cache, *overrides, extra=None, **options):
  """Starts a run; its output is read line by line."""
  return subprocess.Popen(
    command(workdir, *overrides, **options),
    cwd=ROOT,
    env=environment(cache) | (extra or {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(workdir, cache, *overrides, **options):
  """Runs to the end; returns exit code and output."""
  process = start(workdir, cache, *overrides, **options)
  out, _ = process.communicate(timeout=300)
  return process.returncode, out


def wait_for_step(process, step):
  """Reads the output until the run reports a step at or after `step`; returns what it read."""
  seen = []
  for line in process.stdout:
    seen.append(line)
    match = re.match(r'step (\d+)/', line)
    if match and int(match[1]) >= step:
      return ''.join(seen)
  raise AssertionError(f'the run ended before step {step}:\n' + ''.join(seen))
