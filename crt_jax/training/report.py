"""Turns the metrics of a step into a row of numbers, checks them, and writes the row."""

import math
import pathlib
import time
from typing import TYPE_CHECKING

import jax

from crt_jax import accounting
from crt_jax.runs.metrics import MetricsWriter, NonFinite
from crt_jax.runs.workdir import plain
from crt_jax.training.terminal import ProgressLine

if TYPE_CHECKING:
  from crt_jax.training.startup import Run

# The first fields of a row, in order; other numbers of the model and the validation follow.
FIRST = (
  'step',
  'loss',
  'cross_entropy',
  'perplexity',
  'learning_rate',
  'grad_norm',
  'tokens_per_second',
)


class Clock:
  """Seconds of training across restarts, without compiling, evaluating and saving."""

  def __init__(self, seconds: float = 0.0):
    self._before = seconds
    self._since: float | None = None

  def __enter__(self):
    self._since = time.perf_counter()
    return self

  def __exit__(self, *_: object):
    self._before, self._since = self.seconds, None

  @property
  def seconds(self) -> float:
    """The seconds so far."""
    return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)


class Reporter:
  """Turns metrics on the device into rows; the first process writes and prints them."""

  def __init__(self, run: 'Run', track: str = ''):
    """Opens files and progress line; `track` names a tracker (runs/tracking.py), '' for none."""
    config = run.config
    self._log_every, self._steps = config.train.log_every, config.train.steps
    self._clock = run.clock
    self._tokens = config.data.batch_size * config.data.sequence_length
    self._flops_per_token = {
      depth: accounting.model_flops(config.model, config.data.sequence_length, depth)
      for depth in run.depths
    }
    self._peak = peak_flops()
    self._start = (run.first_step, run.clock.seconds)
    self._since, self._flops, self._input_since = self._start, 0.0, 0.0
    self._writer = self._line = None
    if jax.process_index() == 0:
      self._writer = MetricsWriter(run.directory.path, plain(config), run.first_step, track)
      self._line = ProgressLine(self._steps, run.first_step)

  def read(self, step: int, depth: int | None, metrics: dict, input_seconds: float) -> dict:
    """Waits for the metrics of a step, checks them and returns its row.

    Numbers that need a clock are added by `write`.

    Args:
      input_seconds: what this process waited for the batches of its steps so far.

    Raises:
      NonFinite: the loss or the norm of the gradient is NaN or infinite.
    """
    values = {name: x.tolist() for name, x in jax.device_get(metrics).items()}
    if not (math.isfinite(values['loss']) and math.isfinite(values['grad_norm'])):
      # The parameters of the step before gave this loss, so that step is bad at any learning rate.
      what = f'loss={values["loss"]}, grad_norm={values["grad_norm"]}'
      raise NonFinite(step, what, last_good=step - 2)
    self._flops += self._tokens * self._flops_per_token[depth]
    values['perplexity'] = perplexity(values['cross_entropy'])
    values |= {} if depth is None else {'depth': depth}
    return {'step': step, **values, 'input_seconds': input_seconds}

  def write(self, row: dict, always: bool = False) -> None:
    """Writes a row if it is due (every log_every steps, the first, the last, or `always`).

    Its input_seconds are the mean per step since the row before: the time in which the host waited
    for the next batch or copied it to the devices. The devices compute meanwhile, so input limits
    the speed only if a step takes no longer than that.
    """
    step = row['step']
    if not (always or step % self._log_every == 0 or step in (1, self._steps)):
      return
    steps, input_seconds = step - self._since[0], row['input_seconds']
    seconds = max(self._clock.seconds - self._since[1], 1e-9)
    row = row | {
      'tokens_per_second': steps * self._tokens / seconds,
      'mfu': self._flops / seconds / self._peak if self._peak else 0.0,
      'input_seconds': (input_seconds - self._input_since) / max(steps, 1),
      'tokens': step * self._tokens,
      'training_seconds': self._clock.seconds,
    }
    row = {name: row[name] for name in FIRST} | row
    self._since, self._flops = (step, self._clock.seconds), 0.0
    self._input_since = input_seconds
    if self._writer is not None and self._line is not None:
      self._writer.write(row)
      self._line.report(row, self._seconds_left(step))

  def advance(self, step: int) -> None:
    """Shows that a step was submitted to the devices."""
    if self._line is not None:
      is_timed = step > self._start[0] + 1  # before, no step has been waited for
      self._line.advance(step, self._seconds_left(step) if is_timed else None)

  def validating(self) -> None:
    """Shows that the steps wait for a validation."""
    if self._line is not None:
      self._line.validating()

  def say(self, text: str) -> None:
    """Prints a line that is not a row."""
    if self._line is not None:
      self._line.say(text)

  def end_bar(self) -> None:
    """Ends the progress bar of the steps, so that another one can be shown."""
    if self._line is not None:
      self._line.close()

  def conclude(
    self, scores: dict[str, float], text: str | None, figures: list[pathlib.Path]
  ) -> None:
    """Adds the final scores, text and figures to TensorBoard and the tracker."""
    if self._writer is not None:
      self._writer.conclude(self._steps, scores, text, figures)

  def close(self) -> None:
    """Closes files and progress bar."""
    self.end_bar()
    if self._writer is not None:
      self._writer.close()

  def _seconds_left(self, step: int) -> float:
    first, seconds = self._start
    return (self._clock.seconds - seconds) / max(step - first, 1) * (self._steps - step)


def peak_flops() -> float:
  """Returns the peak FLOP/s of all devices together; 0 if unknown."""
  return accounting.peak_flops(jax.devices()[0].device_kind) * jax.device_count()


def perplexity(cross_entropy: float) -> float:
  """Returns exp of a cross-entropy in nats, capped below the overflow of a float."""
  return math.exp(min(cross_entropy, 700.0))
