"""How a run shows itself: a bar on a terminal, plain lines elsewhere."""

import io
import sys
import time

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def show_any_text() -> None:
  """Lets standard output escape the characters that it cannot show, where printing one would raise
  UnicodeEncodeError; library functions that print call it first."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


class ProgressLine:
  """One line a report; on a terminal also a bar below them."""

  def __init__(self, steps: int, first_step: int):
    self._steps = steps
    self._bar = None
    if sys.stdout.isatty():
      columns = (
        TextColumn('step'),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn('{task.fields[left]}'),
      )
      self._bar = Progress(*columns)
      self._task = self._bar.add_task('', total=steps, completed=first_step, left='')
      self._bar.start()

  def report(self, row: dict, seconds_left: float) -> None:
    """Shows the numbers of a row."""
    if self._bar is not None:
      self._bar.update(self._task, completed=row['step'], left=f'{duration(seconds_left)} left')
    self.say(f'step {row["step"]}/{self._steps}  {describe(row, seconds_left)}')

  def say(self, text: str) -> None:
    """Prints lines."""
    if self._bar is not None:
      self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
    else:
      print(text, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.stop()


class Task:
  """Progress of a long piece of work in one process: a bar on a terminal, a line now and then
  elsewhere."""

  LINE_EVERY = 30.0  # seconds

  def __init__(self, title: str, total: float):
    self._title, self._total = title, max(total, 1e-9)
    self._first = None  # what was done at the first update, and when that was
    self._said = time.monotonic()
    self._bar = None

  def __enter__(self):
    if jax.process_index() == 0 and sys.stdout.isatty():
      columns = (TextColumn(self._title), BarColumn(), TextColumn('{task.fields[left]}'))
      self._bar = Progress(*columns, transient=True)
      self._task = self._bar.add_task('', total=self._total, left='')
      self._bar.start()
    return self

  def __exit__(self, *_: object):
    if self._bar is not None:
      self._bar.stop()

  def update(self, done: float) -> None:
    """Shows that `done` of the total is done."""
    now = time.monotonic()
    self._first = self._first or (done, now)
    first, since = self._first
    left = (self._total - done) * (now - since) / (done - first) if done > first else 0.0
    if self._bar is not None:
      self._bar.update(self._task, completed=done, left=f'{duration(left)} left')
    elif now - self._said >= self.LINE_EVERY and jax.process_index() == 0:
      share = min(done / self._total, 1.0)
      print(f'{self._title} {share:.0%}, about {duration(left)} left', flush=True)
      self._said = now


def describe(row: dict, seconds_left: float) -> str:
  """Returns the progress line of a row, without its step."""
  mfu = f'MFU {100 * row["mfu"]:.1f}%  ' if row['mfu'] else ''  # 0: of an unknown peak
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
  return text + (f'  validation perplexity {", ".join(validation)}' if validation else '')


def count(number: float) -> str:
  """1234567 -> '1.23M'."""
  for unit, size in (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.3g}{unit}'
  return f'{number:.3g}'


def duration(seconds: float) -> str:
  """3725 -> '1:02:05'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'
