"""Silence for errors that are raised elsewhere.

A background write that fails is told several times by Orbax: in its log, by its threads, and by
  tasks whose result nobody fetched.
Checkpoints raise the same error once, in one line; while they are open these channels are closed
for Orbax's own messages.
"""

import logging
import threading

LOGGERS = ('absl', 'asyncio')


class QuietOrbax:
  """Drops what Orbax prints itself while it is entered; everybody else is heard."""

  def __enter__(self):
    self._thread_hook = threading.excepthook
    threading.excepthook = self._on_thread_error
    for name in LOGGERS:
      logging.getLogger(name).addFilter(_is_not_orbax)
    return self

  def __exit__(self, *_):
    for name in LOGGERS:
      logging.getLogger(name).removeFilter(_is_not_orbax)
    threading.excepthook = self._thread_hook

  def _on_thread_error(self, args):
    if not _passes_through_orbax(args.exc_traceback):
      self._thread_hook(args)


def _is_not_orbax(record: logging.LogRecord) -> bool:
  return 'orbax' not in record.pathname and 'was never retrieved' not in record.getMessage()


def _passes_through_orbax(traceback) -> bool:
  while traceback is not None:
    if 'orbax' in traceback.tb_frame.f_code.co_filename:
      return True
    traceback = traceback.tb_next
  return False
