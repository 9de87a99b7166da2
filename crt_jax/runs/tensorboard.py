"""What TensorBoard shows of a run: numbers, config and, at the end, scores, sample and figures."""

import contextlib
import pathlib
import struct
import sys
import time
from collections.abc import Iterator

from crt_jax import json_text, schema


@contextlib.contextmanager
def hidden(*names: str) -> Iterator[None]:
  """Makes packages look as if they were not installed, unless they are imported already."""
  added = [name for name in names if name not in sys.modules]
  for name in added:
    sys.modules[name] = None  # pyrefly: ignore [unsupported-operation]: what import finds missing
  try:
    yield
  finally:
    for name in added:
      del sys.modules[name]


# tensorboardX imports these if they are installed, which takes seconds and is not needed.
with hidden('torch', 'theano', 'comet_ml', 'boto3', 'visdom'):
  from tensorboardX import summary
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto import event_pb2, summary_pb2


class Events:
  """Writes the TensorBoard events of a run; each is flushed when a method returns."""

  def __init__(self, folder: pathlib.Path, config: dict, first_step: int):
    """Opens a file for steps after `first_step`; TensorBoard drops earlier events of those.

    Raises:
      OSError: it cannot be written.
    """
    folder.mkdir(exist_ok=True)
    self._config = config
    # EventFileWriter, not SummaryWriter, whose thread dies silently on a full disk.
    # Files are named by the second; two that start in the same second must not be one file.
    self._events = EventsWriter(str(folder / 'events'), f'.{time.time_ns() % 10**9:09}')
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step + 1, session_log=start)
    text = json_text.dumps(config, indent=2).replace('\n', '\n    ')
    self._write(first_step, summary=summary.text('config', f'    {text}'))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the numbers of a step."""
    written = summary_pb2.Summary()
    for tag, value in values.items():
      written.value.extend(summary.scalar(tag, value).value)
    self._write(step, summary=written)

  def conclude(
    self, step: int, scores: dict[str, float], text: str | None, figures: list[pathlib.Path]
  ) -> None:
    """Writes the results of the end of a run; scores appear in the HParams tab."""
    self.write(step, scores)
    for part in summary.hparams(_flat(self._config), scores):
      self._write(step, summary=part)
    if text is not None:
      lines = text.replace('\n', '\n    ')
      self._write(step, summary=summary.text('sample', f'    {lines}'))
    for file in figures:
      image = _image(file.read_bytes())
      shown = summary_pb2.Summary.Value(tag=f'figures/{file.stem}', image=image)
      self._write(step, summary=summary_pb2.Summary(value=[shown]))

  def close(self) -> None:
    self._events.close()

  def _write(self, step: int, **what: summary_pb2.Summary | event_pb2.SessionLog) -> None:
    self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **what))
    self._events.flush()


def _flat(config: dict) -> dict[str, bool | float | str]:
  """Returns dotted name -> value of a config; a list becomes its text."""
  return {
    name: value if isinstance(value, bool | int | float | str) else str(value)
    for name, value in schema.flat(config).items()
  }


def _image(png: bytes) -> summary_pb2.Summary.Image:
  width, height = struct.unpack('>II', png[16:24])  # fixed place in every PNG
  return summary_pb2.Summary.Image(
    width=width, height=height, colorspace=4, encoded_image_string=png
  )
