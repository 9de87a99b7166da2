"""Sweep files: the runs that a sweep lists, the config of each run, and its command.

A sweep file defines `get_sweep()`, which returns a list of `configs.base.Run` and may take
arguments: `--config=configs/sweeps/cart_stage1.py:cpu` calls `get_sweep('cpu')`.
"""

import collections
import re
import sys
from typing import Any

import ml_collections

from configs.base import Run
from crt_jax.cli import config_files
from crt_jax.cli.user_errors import Mistake, did_you_mean

# Folders of a sweep's own beside those of its runs.
RESERVED = ('slurm',)


def load(spec: str) -> list[Run]:
  """Returns the runs of `FILE[:ARGUMENTS]`, in their order.

  Raises:
    Mistake: no such file, no list of runs in it, an empty one, a name that is given twice or
      makes no folder, or a run that begins after none above it.
  """
  runs = config_files.call(spec, 'get_sweep')
  path = spec.partition(':')[0]
  if not isinstance(runs, list) or not all(isinstance(run, Run) for run in runs):
    raise Mistake(f'{path}: get_sweep() has to return a list of configs.base.Run')
  if not runs:
    raise Mistake(f'{path} lists no run')
  for name, times in collections.Counter(run.name for run in runs).items():
    if times > 1:
      raise Mistake(f'{path} lists {times} runs of the name {name!r}; names are folders, so unique')
    if not re.fullmatch(r'[\w=,+-][\w=,.+-]*', name) or name in RESERVED:
      raise Mistake(f'{path}: {name!r} is no name of a folder; use letters, digits and _ - = , . +')
  names = [run.name for run in runs]
  for run in runs:
    if run.after and run.after not in names[: names.index(run.name)]:
      raise Mistake(
        f'{path}: run {run.name} is to begin after {run.after!r}, which is not above it'
      )
  return runs


def first_config(spec: str) -> ml_collections.ConfigDict:
  """Returns the config of the first run: the fields that `--config.FIELD=VALUE` can set."""
  return config_of(load(spec)[0], {})


def config_of(run: Run, overrides: dict[str, Any]) -> ml_collections.ConfigDict:
  """Returns the locked config of a run: its file, its changes, then what the command line sets.

  Raises:
    Mistake: a field that this run's config does not have, or a value of another type.
  """
  config = config_files.load(run.config)
  fields = config_files.fields(config)
  for name, value in {**run.changes, **overrides}.items():
    given = f'run {run.name} ({run.config}): {name}={value!r}'
    if name not in fields:
      hint = did_you_mean(config_files.closest_field(name, fields))
      raise Mistake(f'{given}: the config has no such field{hint}')
    kind, default = fields[name]
    if not isinstance(value, kind) and not (kind is float and type(value) is int):
      words = config_files.KINDS.get(kind, kind.__name__)
      raise Mistake(f'{given}: expected {words}, as in {name}={default!r}')
    with config.unlocked():
      config.update_from_flattened_dict({name: value})
  return config


def flags(run: Run, overrides: dict[str, Any]) -> list[str]:
  """Returns the flags that say what a run is: `--config` and every field that differs from it."""
  changes = {**run.changes, **overrides}
  fields = [f'--config.{name}={word(value)}' for name, value in changes.items()]
  return [f'--config={run.config}', *fields]


def word(value: Any) -> str:
  """Returns a value as it is written on the command line."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def command(flags: list[str], workdir: str, *more: str) -> list[str]:
  """Returns the command that starts such a run alone, as a list of words."""
  return [sys.executable, '-m', 'experiments.main', *flags, f'--workdir={workdir}', *more]
