"""Progress on the terminal: a bar, or plain lines if the output is no terminal."""

import contextlib
import io
import sys
import time

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def show_any_text() -> None:
  """Makes standard output escape characters that it cannot encode.

  Printing one would raise UnicodeEncodeError otherwise; library functions that print call this
  first.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


class ProgressLine:
  """Prints one line per report; on a terminal also a bar below them."""

  LINE_EVERY = 60.0  # seconds between lines where there is no bar and no report

  def __init__(self, steps: int, first_step: int):
    self._steps, self._first_step = steps, first_step
    self._bar = None
    self._said = time.monotonic()

  def advance(self, step: int, seconds_left: float | None) -> None:
    """Shows that a step is done; seconds_left=None if the remaining time is unknown."""
    left = '' if seconds_left is None else f'{duration(seconds_left)} left'
    if not self._show(step, left) and time.monotonic() - self._said >= self.LINE_EVERY:
      self.say(f'step {step}/{self._steps}  {left}'.rstrip())

  def _show(self, step: int, left: str) -> bool:
    """Moves the bar; returns whether there is one."""
    if sys.stdout.isatty():
      if self._bar is None:
        columns = (
          TextColumn('step'),
          MofNCompleteColumn(),
          BarColumn(),
          TextColumn('{task.fields[left]}'),
        )
        self._bar = Progress(*columns)
        self._task = self._bar.add_task('', total=self._steps, completed=self._first_step, left='')
        self._bar.start()
      self._bar.update(self._task, completed=step, left=left)
    return self._bar is not None

  def validating(self) -> None:
    """Shows on the bar why it stands still."""
    if self._bar is not None:
      self._bar.update(self._task, left='validating')

  def report(self, row: dict, seconds_left: float) -> None:
    """Shows the numbers of a row."""
    self._show(row['step'], f'{duration(seconds_left)} left')
    self.say(f'step {row["step"]}/{self._steps}  {describe(row, seconds_left)}')

  def say(self, text: str) -> None:
    """Prints lines."""
    if self._bar is not None:
      self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
    else:
      print(text, flush=True)
    self._said = time.monotonic()

  def close(self) -> None:
    """Ends the bar, so that another one can be shown."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None


class Task:
  """Progress of a long task in one process: a bar on a terminal, otherwise a line now and then.

  A task that cannot say how much is done has a total of 0; its bar moves to and fro.
  """

  LINE_EVERY = 30.0  # seconds

  def __init__(self, title: str, total: float):
    self._title, self._total = title, total
    self._first = None  # work done at the first update, and its time
    self._said = time.monotonic()
    self._bar = None

  def __enter__(self):
    if jax.process_index() == 0 and sys.stdout.isatty():
      columns = (TextColumn(self._title), BarColumn(), TextColumn('{task.fields[left]}'))
      self._bar = Progress(*columns, transient=True)
      self._task = self._bar.add_task('', total=self._total or None, left='')
      self._bar.start()
    return self

  def __exit__(self, *_: object):
    if self._bar is not None:
      self._bar.stop()

  def update(self, done: float) -> None:
    """Shows that `done` of the total is done; the time estimate starts at the first call."""
    now = time.monotonic()
    self._first = self._first or (done, now)
    first, since = self._first
    left = ''
    if done > first:
      left = f'about {duration((self._total - done) * (now - since) / (done - first))} left'
    if self._bar is not None:
      self._bar.update(self._task, completed=done, left=left)
    elif now - self._said >= self.LINE_EVERY and jax.process_index() == 0:
      share = min(done / max(self._total, 1e-9), 1.0)
      print(f'{self._title} {share:.0%}{left and ", "}{left}', flush=True)
      self._said = now


class Stages:
  """Progress of work in stages, each a Task with a heading line; for `data.prepare`."""

  def __init__(self):
    self._stage, self._task = '', contextlib.ExitStack()
    self._update = lambda done: None

  def __enter__(self):
    return self

  def __exit__(self, *_: object):
    self._task.close()

  def __call__(self, stage: str, done: int, total: int) -> None:
    """Shows that `done` of the total of a stage is done; a new stage begins with 0."""
    if stage != self._stage:
      self._task.close()
      if jax.process_index() == 0:
        print(f'{stage} ...', flush=True)
      self._stage = stage
      self._update = self._task.enter_context(Task(stage, total)).update
    self._update(done)


def describe(row: dict, seconds_left: float) -> str:
  """Returns the progress line of a row, without its step; validation is a line of its own."""
  mfu = f'MFU {100 * row["mfu"]:.1f}%  ' if row['mfu'] else ''  # 0 if the peak is unknown
  text = (
    f'loss {row["loss"]:.4f}  perplexity {row["perplexity"]:.2f}  lr {row["learning_rate"]:.2e}  '
    f'grad norm {row["grad_norm"]:.3f}  {count(row["tokens_per_second"])} tokens/s  '
    f'{mfu}ETA {duration(seconds_left)}'
  )
  start = 'validation_perplexity'
  validation = [
    f'{name.removeprefix(start).lstrip("_")} {value:.2f}'.lstrip()
    for name, value in row.items()
    if name.startswith(start)
  ]
  return text + (f'\n  validation perplexity {", ".join(validation)}' if validation else '')


def count(number: float) -> str:
  """Formats a number: 1234567 -> '1.23M'."""
  for unit, size in (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.3g}{unit}'
  return f'{number:.3g}'


def duration(seconds: float) -> str:
  """Formats seconds: 3725 -> '1:02:05', 3e6 -> '34.7 days'."""
  if seconds >= 2 * 86400:
    return f'{seconds / 86400:,.{1 if seconds < 100 * 86400 else 0}f} days'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'
