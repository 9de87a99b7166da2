"""Silences Orbax's reports of errors that are raised elsewhere.

Orbax reports a failed background write several times: in its log, by its threads, and by tasks
whose result nobody fetched. Checkpoints raise the same error once, in one line; while they are open
these channels are closed for Orbax's own messages.
"""

import logging
import sys
import threading
from types import TracebackType

LOGGERS = ('absl', 'asyncio')


class QuietOrbax:
  """Drops what Orbax itself prints while it is entered; other messages pass.

  Attributes:
    failure: the first error that a background write has logged. Orbax raises it too, but with
      several processes only after all have met in a barrier, which those that did not fail reach
      when it times out.
  """

  failure: BaseException | None = None

  def __enter__(self):
    self._thread_hook = threading.excepthook
    threading.excepthook = self._on_thread_error
    self._late_hook, sys.unraisablehook = sys.unraisablehook, self._on_late_error
    for name in LOGGERS:
      logging.getLogger(name).addFilter(self._is_heard)
    return self

  def __exit__(self, *_: object):
    for name in LOGGERS:
      logging.getLogger(name).removeFilter(self._is_heard)
    threading.excepthook = self._thread_hook
    sys.unraisablehook = self._late_hook

  def _is_heard(self, record: logging.LogRecord) -> bool:
    if 'orbax' not in record.pathname:
      return 'was never retrieved' not in record.getMessage()
    if record.exc_info and 'background save' in record.getMessage():
      self.failure = self.failure or record.exc_info[1]
    return False

  def _on_late_error(self, error: 'sys.UnraisableHookArgs'):
    # Reads of a damaged checkpoint that finish after the first one has failed.
    of_orbax = 'orbax' in getattr(getattr(error.object, 'cr_code', None), 'co_filename', '')
    if not of_orbax and str(error.exc_value) != 'Event loop is closed':
      self._late_hook(error)

  def _on_thread_error(self, args: threading.ExceptHookArgs):
    if not _passes_through_orbax(args.exc_traceback):
      self._thread_hook(args)


def _passes_through_orbax(traceback: TracebackType | None) -> bool:
  while traceback is not None:
    if 'orbax' in traceback.tb_frame.f_code.co_filename:
      return True
    traceback = traceback.tb_next
  return False
