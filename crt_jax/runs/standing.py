"""The status of a run from the files in its directory; imports no JAX, changes nothing."""

import contextlib
import pathlib
import traceback
from collections.abc import Iterator
from typing import Any

from crt_jax import json_text
from crt_jax.program import runs
from crt_jax.runs import bucket, lock

FAILURE = 'failure.txt'
LAST_LINES = 8
VALIDATION = 'validation_perplexity'


def describe(path: str | pathlib.Path) -> str:
  """Returns lines on a run: state, step, loss, validation, time left, holder, last failure.

  Raises:
    ValueError: there is no run.
  """
  path, folder = bucket.place(path), bucket.local(path)
  saved = json_text.read(folder / 'config.json', {})
  if 'config' not in saved:
    raise ValueError(f'--workdir={path} holds no run (config.json is missing or cannot be read)')
  train, data = saved['config']['train'], saved['config']['data']
  rows = json_text.rows(folder / 'metrics.jsonl')
  last = rows[-1] if rows else {}
  kept = bucket.steps_on_disk(path / 'checkpoints')
  step, steps = max([last.get('step', 0), *kept]), train['steps']
  state = state_of(folder)
  lines = [f'{path}: {state}', f'  step         {step:,} of {steps:,} ({step / steps:.0%})']
  if last:
    lines.append(f'  loss         {_number(last.get("loss"))} at step {last["step"]:,}')
  validated = next((row for row in reversed(rows) if _validations(row)), {})
  if validated:
    values = ', '.join(f'{name} {_number(v)}'.lstrip() for name, v in _validations(validated))
    lines.append(f'  validation   perplexity {values} at step {validated["step"]:,}')
  if last.get('tokens_per_second') and state.startswith('running'):
    rate = last['tokens_per_second']
    seconds = (steps - step) * data['batch_size'] * data['sequence_length'] / rate
    lines.append(f'  speed        {rate:,.0f} tokens/s, about {_minutes(seconds)} left to train')
  if last.get('training_seconds'):
    lines.append(f'  trained for  {_minutes(last["training_seconds"])}')
  lines.append(f'  checkpoints  {", ".join(map(str, kept)) or "none yet"}')
  if state.startswith('stopped'):
    lines.append('  next         the command that started it goes on here')
  with contextlib.suppress(OSError):
    failed = (folder / FAILURE).read_text('utf-8').rstrip().splitlines()[-LAST_LINES:]
    lines += ['  last failure', *(f'    {line}' for line in failed)]
  return '\n'.join(lines)


def state_of(path: pathlib.Path) -> str:
  """Returns 'finished', 'running' with its holder, or 'stopped'."""
  if (path / 'finished.json').exists():
    return 'finished'
  found = lock.holder(path)
  if lock.is_here(found) and not runs(found['process']):
    return f'stopped: process {found["process"]} of this machine, which trained here, is gone'
  return f'running, {lock.named(found)}' if found else 'stopped'


@contextlib.contextmanager
def recording(path: pathlib.Path, is_first: bool) -> Iterator[None]:
  """Records how a run fails, until it is started again.

  Args:
    is_first: whether this process is the one that writes.
  """
  file = path / FAILURE
  if is_first:
    file.unlink(missing_ok=True)
  try:
    yield
  except (Exception, SystemExit) as error:
    # SystemExit with a number means stopped and saved; with a text it is an error message.
    if is_first and not (isinstance(error, SystemExit) and not isinstance(error.code, str)):
      words = error.code if isinstance(error, SystemExit) else None
      with contextlib.suppress(OSError):  # the disk itself may have failed
        text = words or ''.join(traceback.format_exception(error))
        file.write_text(f'{lock.now()}\n{text}\n', 'utf-8')
    raise


def _validations(row: dict) -> list[tuple[str, Any]]:
  """Returns the validation perplexities of a row by set; the set is '' if there is only one."""
  names = ((name, name.removeprefix(VALIDATION).lstrip('_')) for name in row)
  return [(own, row[name]) for name, own in names if name.startswith(VALIDATION)]


def _number(value: float | None) -> str:
  return 'not finite' if value is None else f'{value:#.4g}'


def _minutes(seconds: float) -> str:
  for unit, size in (('days', 86_400), ('hours', 3600), ('minutes', 60)):
    if seconds >= 2 * size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds:.0f} seconds'
