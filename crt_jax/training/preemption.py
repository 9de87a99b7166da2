"""SIGTERM: what a cluster sends before it takes the machine away."""

import contextlib
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

# With several processes they have to agree on the step to stop at, which costs a message; so they
# ask only now and then.
AGREE_EVERY = 10


class Preempted(SystemExit):
  """The run was asked to stop and nothing is lost; the same command continues it (exit code 75)."""

  def __init__(self):
    print('stopped by SIGTERM; everything is saved, run the same command to continue', flush=True)
    super().__init__(75)


class StopSignal:
  """While entered, a SIGTERM raises Preempted at once, except inside `postponed`, where it waits to
  be asked for."""

  def __init__(self):
    self._seen = self._postponed = False

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
    if step % AGREE_EVERY:
      return False
    return bool(np.any(multihost_utils.process_allgather(np.asarray(self._seen))))
