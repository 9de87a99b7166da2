"""The numbers of a run on disk: metrics.jsonl, TensorBoard events and a tracker."""

import pathlib

from crt_jax import json_text, storage
from crt_jax.runs import tensorboard, tracking

# Groups of numbers in TensorBoard and trackers; all others are statistics of the recurrence.
TRAIN = ('loss', 'cross_entropy', 'perplexity', 'learning_rate', 'grad_norm', 'targets')
SPEED = ('tokens_per_second', 'mfu', 'input_seconds', 'training_seconds', 'tokens')


class NonFinite(Exception):
  """The loss, the gradient or the update of a step was NaN or infinite."""

  def __init__(self, step: int, what: str, last_good: int):
    """Takes `last_good`, the last step to continue from, with a lower learning rate."""
    self.step, self.last_good = step, last_good
    super().__init__(what)


class MetricsWriter:
  """Appends rows to metrics.jsonl, TensorBoard and a tracker; each is flushed by `write`."""

  def __init__(self, folder: pathlib.Path, config: dict, first_step: int, track: str = ''):
    """Opens the files for steps after `first_step`; rows of later steps are removed.

    Args:
      folder: the work directory.
      config: of the run, plain.
      track: 'wandb' or 'trackio' (runs/tracking.py); '' for none.

    Raises:
      OSError: a file cannot be written.
    """
    self._path = folder / 'metrics.jsonl'
    cut_back(self._path, first_step)
    self._rows = open(self._path, 'a', encoding='utf-8')
    self._shown = (
      tensorboard.Events(folder / 'tensorboard', config, first_step),
      *([tracking.Tracker(track, folder, config)] if track else ()),
    )

  def write(self, row: dict) -> None:
    """Writes one row, which has a field `step`; raises OSError that names the file."""
    try:
      self._rows.write(json_text.dumps(row) + '\n')
      self._rows.flush()
      for show in self._shown:
        show.write(row['step'], tagged(row))
    except OSError as error:
      raise OSError(
        f'{self._path} could not be written ({error.strerror}); free some space and run the '
        'same command again'
      ) from None

  def conclude(
    self, step: int, scores: dict[str, float], text: str | None, figures: list[pathlib.Path]
  ) -> None:
    """Adds the results of the end of a run: scores by tag, a text sample, figures (PNG)."""
    for show in self._shown:
      show.conclude(step, scores, text, figures)

  def close(self) -> None:
    """Closes all files; `write` has reported what a full disk left unwritten."""
    for file in (self._rows, *self._shown):
      try:
        file.close()
      except OSError:
        pass


def tagged(row: dict) -> dict[str, float]:
  """Returns the numbers of a row, without its step, under grouped tags; a list is x_1, x_2, ..."""
  found = {}
  for name, value in row.items():
    if name.startswith('validation_'):
      tag = name.replace('_', '/', 1)
    else:
      group = 'train' if name in TRAIN else 'speed' if name in SPEED else 'recurrence'
      tag = f'{group}/{name}'
    if isinstance(value, list):
      found |= {f'{tag}_{index}': x for index, x in enumerate(value, start=1)}
    elif name != 'step':
      found[tag] = value
  return found


def cut_back(path: pathlib.Path, step: int) -> None:
  """Removes the rows after `step`, and an unfinished last row; without any, changes nothing."""
  text = path.read_bytes() if path.exists() else b''
  kept = b''.join(line for line in text.splitlines(keepends=True) if step_of(line, step) <= step)
  if kept != text:
    storage.write_file(path, kept)


def step_of(line: bytes, limit: int) -> int:
  """Returns the step of a row; a line that is no row gives a step past the limit."""
  try:
    return int(json_text.parse(line)['step']) if line.endswith(b'\n') else limit + 1
  except (ValueError, KeyError, TypeError):
    return limit + 1
