"""What a sweep is about to do, checked before it does any of it.

WORKDIR/sweep.json says what the directory holds: 'config', the sweep as it was asked for, and
'runs', for each its 'flags' (what differs between the commands), its 'steps' and, where it begins
with the parameters of another run, the name of that ('after').
"""

import pathlib
from typing import Any

from configs.base import Run
from crt_jax import json_text
from crt_jax.cli import texts
from crt_jax.cli.user_errors import Mistake, describe
from experiments import sweep_files

LISTING = 'sweep.json'


def listing(spec: str, runs: list[Run], overrides: dict[str, Any]) -> dict:
  """Returns the contents of sweep.json."""
  entries: dict[str, dict[str, Any]] = {}
  for run in runs:
    steps = sweep_files.config_of(run, overrides).train.steps
    entries[run.name] = {'flags': sweep_files.flags(run, overrides), 'steps': steps}
    if run.after:
      entries[run.name]['after'] = run.after
  return {'config': spec, 'runs': entries}


def saved(workdir: pathlib.Path) -> dict:
  """Returns the sweep.json of a directory. Raises Mistake if there is none to read."""
  found = json_text.read(workdir / LISTING)
  if not isinstance(found, dict) or 'runs' not in found:
    raise Mistake(
      f'--workdir={workdir} holds no sweep ({LISTING} is missing); start one with --config, or '
      'give the --workdir it was started with'
    )
  return found


def merged(workdir: pathlib.Path, new: dict) -> dict:
  """Returns the listing for a directory that may already hold the same sweep, which may grow.

  Raises:
    Mistake: the directory holds something else, another sweep, or one of its runs with other
      settings. Nothing was written.
  """
  if workdir.exists() and not workdir.is_dir():
    raise Mistake(f'--workdir={workdir} is a file; choose a directory')
  entries = sorted(path.name for path in workdir.iterdir()) if workdir.exists() else []
  if not entries:
    return new
  if LISTING not in entries:
    listed = ', '.join(entries[:3])
    raise Mistake(
      f'--workdir={workdir} holds something else ({listed}) and no {LISTING}; choose a new or '
      'empty directory'
    )
  old = saved(workdir)
  if old['config'].partition(':')[0] != new['config'].partition(':')[0]:
    raise Mistake(f'--workdir={workdir} holds another sweep, {old["config"]}; choose a new one')
  for name, entry in new['runs'].items():
    before = old['runs'].get(name, entry)
    differing = sorted(set(before['flags']) ^ set(entry['flags']))
    if differing:
      raise Mistake(
        f'--workdir={workdir} holds run {name} with other settings ({" and ".join(differing)}); '
        'use a new --workdir'
      )
  return {**new, 'runs': {**old['runs'], **new['runs']}}


def refuse_stand_ins(spec: str, runs: list[Run], overrides: dict[str, Any]) -> None:
  """Raises Mistake if a job would train on stand-in texts that nobody asked for by name."""
  for run in runs:
    config = sweep_files.config_of(run, overrides)
    texts.refuse_stand_ins(config, spec, [*run.changes, *overrides])


def folder_of(name: str, workdir: pathlib.Path) -> pathlib.Path:
  """Returns the work directory of a run."""
  return (workdir / name).resolve()


def check(runs: list[Run], overrides: dict[str, Any], workdir: pathlib.Path) -> None:
  """Builds every run's model and checks its config, text and directory, as the run itself will.

  Raises:
    Mistake: in one line, with the name of the run; nothing was compiled or written.
  """
  from crt_jax import data, evaluation
  from crt_jax.runs import workdir as run_directory
  from crt_jax.training import startup

  seen = []  # config.data, of which a sweep has few
  for run in runs:
    config = sweep_files.config_of(run, overrides)
    if run.after:
      config.train.init_from = str(folder_of(run.after, workdir))
    try:
      config, model = startup.check_config(config)
      evaluation.forms(evaluation.scoring_model(model, config), config)
      run_directory.check_workdir(folder_of(run.name, workdir), config, fork=False)
      if config.data not in seen:
        data.check_present(config.data)
        seen.append(config.data)
    except (ValueError, OSError) as error:
      line = describe(error)
      if line is None:
        raise
      raise Mistake(f'run {run.name} ({run.config}): {line}') from None
