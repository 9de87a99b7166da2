"""The numbers of a run on disk: metrics.jsonl and, the same, as TensorBoard events."""

import os
import pathlib
import time

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from crt_jax import json_text


class NonFinite(Exception):
  """The loss, the gradient or the update of a step was NaN or infinite."""

  def __init__(self, step: int, what: str, last_good: int):
    """`last_good`: the last step whose parameters may be continued from, with a lower rate."""
    self.step, self.last_good = step, last_good
    super().__init__(what)


class MetricsWriter:
  """Appends rows to metrics.jsonl and, the same numbers, to TensorBoard. Each row is on its way to
  disk when `write` returns."""

  def __init__(self, path: pathlib.Path, events: pathlib.Path, first_step: int):
    """Opens both for steps after `first_step`; later rows, of a run that was killed, are cut away.

    Raises:
      OSError: a file cannot be written.
    """
    cut_back(path, first_step)
    self._path = path
    self._rows = open(path, 'a', encoding='utf-8')
    events.mkdir(exist_ok=True)
    # The event writer itself and not SummaryWriter, whose thread dies silently on a full disk.
    self._events = EventsWriter(str(events / 'events'))
    restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._events.write_event(
      event_pb2.Event(wall_time=time.time(), step=first_step + 1, session_log=restart)
    )
    self._events.flush()

  def write(self, row: dict) -> None:
    """Writes one row; `step` is one of its fields. Raises OSError that names the file."""
    event = event_pb2.Event(wall_time=time.time(), step=row['step'])
    for name, value in scalars(row):
      event.summary.value.extend(summary.scalar(name, value).value)
    try:
      self._rows.write(json_text.dumps(row) + '\n')
      self._rows.flush()
      self._events.write_event(event)
      self._events.flush()
    except OSError as error:
      raise OSError(
        f'{self._path} could not be written ({error.strerror}); free some space and run the '
        'same command again'
      ) from None

  def close(self) -> None:
    """Closes both files; what a full disk has left unwritten was reported by `write`."""
    for file in (self._rows, self._events):
      try:
        file.close()
      except OSError:
        pass


def scalars(row: dict):
  """Yields (name, number) of a row without its step; a list is name_1, name_2, ..."""
  for name, value in row.items():
    if isinstance(value, list):
      yield from ((f'{name}_{index}', x) for index, x in enumerate(value, start=1))
    elif name != 'step':
      yield name, value


def cut_back(path: pathlib.Path, step: int) -> None:
  """Removes the rows after `step`, and a last row that a kill left unfinished; keeps the file when
  there are none."""
  text = path.read_bytes() if path.exists() else b''
  kept = b''.join(line for line in text.splitlines(keepends=True) if step_of(line, step) <= step)
  if kept != text:
    scratch = path.with_name(path.name + '.partial')
    scratch.write_bytes(kept)
    os.replace(scratch, path)


def step_of(line: bytes, limit: int) -> int:
  """Returns the step of a row; one past the limit for a line that is no row."""
  try:
    return int(json_text.parse(line)['step']) if line.endswith(b'\n') else limit + 1
  except (ValueError, KeyError, TypeError):
    return limit + 1
