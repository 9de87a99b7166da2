"""SIGTERM, SIGHUP and Ctrl-C: a run is asked to stop, at any moment of its life.

No exception is raised from a signal: it would unwind through whatever library runs at that moment,
and compilers do not survive that. Instead a thread hears every signal. While steps are taken it
makes a note, and the loop saves and stops between two steps. At all other times everything that had
to be saved is saved, so the thread says so and ends the process, whatever the main thread does.

Imports nothing heavy, so that an entry point can listen before it imports JAX.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PREEMPTED = 75  # exit code, sysexits.h: temporary failure, try again
INTERRUPTED = 130  # exit code after Ctrl-C, as a shell reports it
CODES: dict[int, int] = {
  signal.SIGTERM: PREEMPTED,
  signal.SIGHUP: PREEMPTED,
  signal.SIGINT: INTERRUPTED,
}

# Several processes have to stop at the same step. Asking the others costs a message and lets the
# device wait for the host, so they ask about once in so many seconds.
ASK_EVERY = 1.0
MOST_STEPS = 1000  # between two such exchanges
CONTINUE = 'run the same command to continue'
FLUSH_SECONDS = 2.0  # for flushing output, which may block
TELL_SECONDS = 15.0  # for the other processes to hear why this one ends


class Preempted(SystemExit):
  """The run was asked to stop and everything is saved: exit code 75, or 130 after Ctrl-C."""

  def __init__(self, number: int, step: int):
    """Takes the `number` of the signal and the `step` that was saved."""
    self.together = True  # all processes stop here, at the same step
    print(f'{_name(number)}: saved at step {step}; {CONTINUE}', flush=True)
    super().__init__(CODES[number])


class StopSignal:
  """Whether the run was asked to stop; hears no signal before `listen`.

  Attributes:
    standing: says what of the run is saved, for the last line.
    tell: is given the exit code and the reason before the process ends at once; tells the other
      processes.
  """

  def __init__(self):
    self.standing: Callable[[], str] = lambda: 'there was nothing to save yet'
    self.tell: Callable[[int, str], None] = lambda code, reason: None
    self._received = 0  # number of the first signal, 0: none
    self._interrupts = 0
    self._between_steps = False
    self._lock = threading.Lock()
    self._asked = None  # step and time of the last exchange, on this host's clock
    self._ask_at = 0

  def listen(self) -> 'StopSignal':
    """Handles signals from now to the end of the process; call it once, from the main thread.

    A signal that the parent process ignores stays ignored: SIGHUP under nohup, SIGINT in the
    background of a script.
    """
    heard, notice = os.pipe()
    os.set_blocking(notice, False)
    threading.Thread(target=self._hear, args=(heard,), daemon=True).start()
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
    for number in CODES:
      if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, _leave_it_to_the_thread)
    return self

  def ignore(self) -> None:
    """Ignores signals from now on, since the exit code is decided.

    Only waiting for the other processes and for the interpreter is left, and during the
    interpreter's shutdown no thread could handle a signal.
    """
    for number in CODES:
      signal.signal(number, signal.SIG_IGN)

  def _hear(self, heard: int) -> None:
    while True:
      for number in os.read(heard, 64):
        if number in CODES:
          self._receive(number)

  def _receive(self, number: int) -> None:
    self._interrupts += number == signal.SIGINT
    self._received = self._received or number
    with self._lock:
      if not self._between_steps:
        self._end(number)
      if self._interrupts > 1:
        self._end(number, 'left without saving; ')
    hint = '; once more to leave at once' if number == signal.SIGINT else ''
    _say(f'{_name(number)}: saving after this step{hint}')

  def _end(self, number: int, said: str = '') -> None:
    _say(f'{_name(number)}: {said}{self.standing()}; {CONTINUE}')
    code = CODES[number]
    within(TELL_SECONDS, self.tell, code, _name(number))
    leave(code)

  @contextlib.contextmanager
  def between_steps(self) -> Iterator[None]:
    """Marks the time in which a stop must save first: `requested` is asked between two steps."""
    self._between_steps = True
    yield
    with self._lock:
      self._between_steps = False
    if self._received:  # it came after the last exchange
      self._end(self._received)

  def requested(self, step: int) -> bool:
    """Returns whether to stop after this step: the same answer on every process."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
      return bool(self._received)
    if step < self._ask_at:
      return False
    last, since = self._asked or (step, -np.inf)
    seconds = (time.monotonic() - since) / max(step - last, 1)
    received_P, seconds_P = multihost_utils.process_allgather(
      np.array([self._received, seconds], np.float32)
    ).T
    self._asked = step, time.monotonic()
    # The slowest process decides, so that all ask again at the same step.
    self._ask_at = step + steps_between(float(seconds_P.max()))
    # A signal during the exchange is unknown to the others and counts in the next one.
    agreed = int(received_P.max())
    self._received = self._received or agreed
    return bool(agreed)

  def stopped(self, step: int) -> Preempted:
    """Returns the exception of a run that was asked to stop and is saved at `step`."""
    return Preempted(self._received or signal.SIGTERM, step)


def steps_between(seconds_per_step: float) -> int:
  """Returns the number of steps until the processes ask each other again."""
  return int(min(max(ASK_EVERY / max(seconds_per_step, 1e-9), 1), MOST_STEPS))


_last_calls: list[Callable[[], None]] = []


def before_leaving(call: Callable[[], None]) -> None:
  """Registers a function to call at the end of the process, also when it ends by `leave`."""
  _last_calls.append(call)
  atexit.register(call)


def leave(code: int) -> None:
  """Ends the process at once; a regular exit would wait for other threads and processes."""
  for call in (*_last_calls, _flush):
    within(FLUSH_SECONDS, call)
  os._exit(code)


def within(seconds: float, call: Callable, *arguments: Any) -> None:
  """Calls a function, and gives up if it takes longer than so many seconds or fails."""

  def run():
    with contextlib.suppress(Exception):
      call(*arguments)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)


def _flush() -> None:
  for stream in (sys.stdout, sys.stderr):
    stream.flush()


def _say(text: str) -> None:
  """Prints a line past Python's buffers, whose lock the main thread may hold."""
  with contextlib.suppress(OSError):
    before = '\n' if os.isatty(2) else ''  # a progress bar leaves its line open
    os.write(2, f'{before}{text}\n'.encode())


def _name(number: int) -> str:
  return 'interrupted' if number == signal.SIGINT else f'stopped by {signal.Signals(number).name}'


def _leave_it_to_the_thread(*_: object) -> None:
  """Does nothing: without a handler a signal would end the process before the thread hears it."""
