"""The status of each run of a sweep, from its folder and the queue, and the status table."""

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

from crt_jax import json_text
from experiments.jobs import attempts
from experiments.jobs.attempts import FAILED, FINISHED, PREEMPTED, RUNNING

if TYPE_CHECKING:
  from rich.table import Table

WAITING, QUEUED, STOPPED = 'waiting', 'queued', 'stopped'
STATES = (FINISHED, RUNNING, QUEUED, PREEMPTED, STOPPED, FAILED, WAITING)
COLORS = {FINISHED: 'green', RUNNING: 'cyan', FAILED: 'red', STOPPED: 'yellow', PREEMPTED: 'yellow'}
VALIDATION = 'validation_perplexity'


@dataclasses.dataclass(frozen=True)
class Standing:
  """The status of one run, as one row of the table."""

  name: str
  state: str  # one of STATES
  step: int
  steps: int
  loss: float | None
  validation: str  # perplexity, by name of the set where there are several
  tokens_per_second: float | None
  attempts: int
  failures: int
  job: str
  error: str  # of the last failed attempt, unless the run has finished


def standing(name: str, folder: pathlib.Path, steps: int, job: tuple[str, str] | None) -> Standing:
  """Returns the status of a run.

  Args:
    steps: that it is to take.
    job: id and state of its job, if the cluster still has it.
  """
  kept = attempts.read(folder)
  rows = json_text.rows(folder / 'metrics.jsonl')
  last = rows[-1] if rows else {}
  validated = next((row for row in reversed(rows) if validation(row)), {})
  state = state_of(folder, kept['state'], job)
  return Standing(
    name=name,
    state=state,
    step=last.get('step', 0),
    steps=steps,
    loss=last.get('loss'),
    validation=validation(validated),
    tokens_per_second=last.get('tokens_per_second'),
    attempts=kept['attempts'],
    failures=len(kept['failures']),
    job=job[0] if job else kept['job'],
    error='' if state == FINISHED or not kept['failures'] else kept['failures'][-1]['error'],
  )


def state_of(folder: pathlib.Path, kept: str, job: tuple[str, str] | None) -> str:
  """Returns the state of a run: the one it last wrote, unless its process is gone."""
  if (folder / 'finished.json').exists():
    return FINISHED
  if job is not None:
    return RUNNING if job[1] in ('RUNNING', 'COMPLETING') and kept == RUNNING else QUEUED
  if kept == RUNNING:
    return RUNNING if attempts.is_held(folder) or is_alive(folder) else STOPPED
  return kept or WAITING


def is_alive(folder: pathlib.Path) -> bool:
  """Returns whether the process of the latest attempt still runs, if it is on this machine."""
  state = attempts.read(folder)
  if state['job'] or state.get('host') != os.uname().nodename:
    return False
  try:
    words = pathlib.Path(f'/proc/{state["pid"]}/cmdline').read_text('utf-8', 'replace').split('\0')
  except OSError:
    return False
  return any(str(folder) in word for word in words)


def validation(row: dict) -> str:
  """Returns the validation perplexities of a row: '12.3', or 'tiny 6.04  wiki 97.7'."""
  if VALIDATION in row:
    return number(row[VALIDATION])
  sets = {k.partition(f'{VALIDATION}_')[2]: v for k, v in row.items()}
  return '  '.join(f'{name} {number(value)}' for name, value in sets.items() if name)


def number(value: float | None) -> str:
  """Returns a number of a row; null stands for one that is not finite."""
  return 'not finite' if value is None else f'{value:.4g}'


def table(title: str, found: list[Standing]) -> 'Table':
  """Returns a rich table, one row a run."""
  from rich import box
  from rich.table import Table
  from rich.text import Text

  view = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left', pad_edge=False)
  with_jobs = any(one.job for one in found)
  columns = ('run', 'state', 'step', 'loss', 'validation perplexity', 'tokens/s', 'attempts')
  for column in columns + ('job',) * with_jobs:
    right = column in ('step', 'loss', 'tokens/s', 'attempts')
    view.add_column(column, justify='right' if right else 'left', no_wrap=True)
  for one in found:
    number = str(one.attempts or '') + (f' ({one.failures} failed)' if one.failures else '')
    cells = [
      *(one.name, Text(one.state, style=COLORS.get(one.state, '')), f'{one.step}/{one.steps}'),
      '' if one.loss is None else f'{one.loss:.4f}',
      one.validation,
      '' if one.tokens_per_second is None else f'{one.tokens_per_second:,.0f}',
      *(number, *([one.job] if with_jobs else [])),
    ]
    view.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
  return view


def summary(found: list[Standing]) -> str:
  """Returns '3 of 8 finished, 1 running, 4 waiting'."""
  counts = {state: sum(one.state == state for one in found) for state in STATES}
  rest = [f'{n} {state}' for state, n in counts.items() if n and state != FINISHED]
  return ', '.join([f'{counts[FINISHED]} of {len(found)} finished', *rest])


def show(title: str, found: list[Standing], folder: pathlib.Path) -> None:
  """Prints the table, its summary, and why each unfinished run failed."""
  from rich.console import Console

  console = Console(highlight=False, soft_wrap=False)
  if not console.is_terminal:
    console = Console(highlight=False, width=200)
  console.print(table(title, found))
  for one in found:
    if one.error:
      place = folder / one.name / attempts.FOLDER
      console.print(f'{one.name}: {one.error} ({place})', markup=False, soft_wrap=True)
  console.print(summary(found), markup=False)


def standings(workdir: pathlib.Path, steps: dict[str, int], jobs: dict) -> list[Standing]:
  """Returns the status of every run of a sweep.

  Args:
    steps: name of a run -> how many it is to take, in the order of the sweep.
    jobs: what slurm.queued returns.
  """
  return [standing(name, workdir / name, n, jobs.get(name)) for name, n in steps.items()]
