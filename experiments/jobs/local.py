"""Runs of a sweep on this machine: several at a time, each in its own process."""

import concurrent.futures
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType

from experiments.jobs import attempts
from experiments.jobs.attempts import FAILED, PREEMPTED, Launch


def say(line: str) -> None:
  """Prints a line at once, also into a file."""
  print(line, flush=True)


class Pool:
  """Runs launches side by side; SIGTERM or Ctrl-C lets each save and stops."""

  def __init__(
    self,
    parallel: int,
    gpus: tuple[str, ...] = (),
    say: Callable[[str], None] = say,
  ):
    """Prepares to run `parallel` launches at a time.

    Args:
      gpus: CUDA devices that the runs take turns at; () = each run sees what this process sees.
    """
    self._parallel, self._say = parallel, say
    self._gpus = queue.SimpleQueue()
    for i in range(parallel):
      self._gpus.put(gpus[i % len(gpus)] if gpus else '')
    self._running: set[subprocess.Popen] = set()
    self._lock = threading.Lock()
    self.stopped_by: int | None = None  # the number of the signal

  def run(self, launches: list[Launch]) -> dict[str, str]:
    """Runs all to the end, in their order; returns the state of each by name.

    Call it from the main thread, which is where signals arrive.
    """
    before = {
      number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
      with concurrent.futures.ThreadPoolExecutor(self._parallel) as threads:
        states = threads.map(self._run, launches)
        return {launch.name: state for launch, state in zip(launches, states, strict=True)}
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _run(self, launch: Launch) -> str:
    """Restarts a run until it has finished, has failed too often, or everything stops."""
    gpu = self._gpus.get()
    try:
      while self.stopped_by is None:
        environment = os.environ | ({'CUDA_VISIBLE_DEVICES': gpu} if gpu else {})
        self._say(f'{launch.name}: attempt {attempts.read(launch.folder)["attempts"] + 1}')
        # In a session of its own, so that Ctrl-C reaches this process alone.
        state = attempts.attempt(
          launch, on_start=self._started, environment=environment, start_new_session=True
        )
        if state == FAILED:
          self._say(f'{launch.name}: {attempts.read(launch.folder)["failures"][-1]["error"]}')
        if not (state == PREEMPTED or state == FAILED and attempts.may_retry(launch)):
          self._say(f'{launch.name}: {state}')
          return state
      return PREEMPTED
    finally:
      self._gpus.put(gpu)

  def _started(self, process: subprocess.Popen) -> None:
    with self._lock:
      self._running = {other for other in self._running if other.poll() is None} | {process}
    if self.stopped_by is not None:  # the signal came in between
      process.terminate()

  def _stop(self, number: int, frame: FrameType | None) -> None:
    """Passes the first signal on to the runs, as SIGTERM, which makes them save and end.

    It takes no lock: the set of processes is replaced, never changed.
    """
    del frame
    first, self.stopped_by = self.stopped_by is None, number
    if first:
      self._say('stopping: every run saves first')
      for process in self._running:
        if process.poll() is None:
          process.terminate()
