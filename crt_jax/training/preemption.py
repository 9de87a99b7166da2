"""SIGTERM: what a cluster sends before it takes the machine away."""

import contextlib
import signal
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

PREEMPTED = 75  # exit code, sysexits.h: temporary failure, try again

# With several processes they have to agree on the step to stop at, which costs a message and lets
# the device wait for the host; so they ask about once in so many seconds.
ASK_EVERY = 1.0
MOST_STEPS = 1000  # between two questions


class Preempted(SystemExit):
  """The run was asked to stop and nothing is lost; the same command continues it (exit code 75)."""

  def __init__(self, together: bool = False):
    """`together`: all processes stop here, at the same step."""
    self.together = together
    print('stopped by SIGTERM; everything is saved, run the same command to continue', flush=True)
    super().__init__(PREEMPTED)


class StopSignal:
  """While entered, a SIGTERM raises Preempted at once, except inside `postponed`, where it waits to
  be asked for."""

  def __init__(self):
    self._seen = self._postponed = False
    self._asked = None  # the step of the last question and when it was, on this host's clock
    self._ask_at = 0

  def __enter__(self):
    self._handles = threading.current_thread() is threading.main_thread()
    if self._handles:
      self._before = signal.signal(signal.SIGTERM, self._receive)
    return self

  def __exit__(self, *_):
    if self._handles:
      signal.signal(signal.SIGTERM, self._before)

  def _receive(self, *_):
    self._seen = True
    if not self._postponed:
      raise Preempted()

  @contextlib.contextmanager
  def postponed(self):
    """For the time in which there is something to save first: ask `requested` between two steps."""
    self._postponed = True
    yield
    self._postponed = False

  def raise_if_seen(self):
    """For a signal that came when there was no further step to ask after."""
    if self._seen:
      raise Preempted()

  def requested(self, step: int) -> bool:
    """Whether to stop after this step: the same answer on every process."""
    if jax.process_count() == 1:
      return self._seen
    if step < self._ask_at:
      return False
    last, since = self._asked or (step, -np.inf)
    seconds = (time.monotonic() - since) / max(step - last, 1)
    seen_P, seconds_P = multihost_utils.process_allgather(np.float32([self._seen, seconds])).T
    self._asked = step, time.monotonic()
    # The slowest decides, so that all ask at the same step again.
    self._ask_at = step + steps_between(float(seconds_P.max()))
    return bool(seen_P.any())


def steps_between(seconds_per_step: float) -> int:
  """How many steps pass until the processes ask again."""
  return int(np.clip(ASK_EVERY / max(seconds_per_step, 1e-9), 1, MOST_STEPS))
