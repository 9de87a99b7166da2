"""Reports where a process waits when its run makes no progress.

A collective may wait for a host that is gone, or a file system may hang. Nothing is ended, since
the run may continue.
"""

import os
import socket
import sys
import threading
import time
import traceback
from types import TracebackType

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Watchdog:
  """Listens for steps while it is open, from the thread that runs them.

  Args:
    seconds: without a step, after which a line is printed on stderr, and again each time that it
      has become twice as long; 0: never.
    process: the number of this process, for the line.
  """

  def __init__(self, seconds: float, process: int):
    self._seconds, self._process = seconds, process
    self._step, self._since = 0, time.monotonic()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self):
    self._watched = threading.get_ident()
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._closed.set()

  def beat(self, step: int) -> None:
    """Records that a step begins."""
    self._step, self._since = step, time.monotonic()

  def _watch(self) -> None:
    patience = self._seconds
    while not self._closed.wait(self._seconds / 4):
      quiet = time.monotonic() - self._since
      if quiet < self._seconds:
        patience = self._seconds
      elif quiet >= patience:
        patience *= 2
        print(
          f'warning: step {self._step} takes {quiet:.0f} s already; process {self._process} on '
          f'{socket.gethostname()} is in {self._place()}',
          file=sys.stderr,
          flush=True,
        )

  def _place(self) -> str:
    """Returns the thread's innermost call in this package, and its innermost call anywhere."""
    frames = traceback.extract_stack(sys._current_frames()[self._watched])
    own = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    calls = [*own[-1:], frames[-1]]
    named = [f'{frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})' for frame in calls]
    return ', '.join(dict.fromkeys(named))
