"""One run of a sweep: its command, restarted until it finishes or fails too often.

RUN/attempts/ holds the output of every attempt, N.log, and state.json:

  state      running, finished, preempted (saved, to be started again) or failed
  attempts   how many were started
  failures   of each failed one: attempt, exit_code, error (a line), traceback, at, host
  job, host, pid, started, ended    of the latest attempt
"""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from crt_jax import json_text
from crt_jax.runs import lock

FOLDER = 'attempts'
RUNNING, FINISHED, PREEMPTED, FAILED = 'running', 'finished', 'preempted', 'failed'
SAVED, MISTAKE = 75, 2  # exit codes of experiments.main
# SIGTERM ends a run that has nothing to save yet; a shell reports it as 128 + 15.
ENDED_BY_SIGTERM = (-signal.SIGTERM, 128 + signal.SIGTERM)
LONGEST = 20_000  # characters of a traceback that are kept


@dataclasses.dataclass(frozen=True)
class Launch:
  """A run to be started."""

  name: str
  folder: str
  command: tuple[str, ...]
  max_failures: int  # failures after which the run is given up
  processes: int = 1  # of the run

  @classmethod
  def of(
    cls, name: str, folder: pathlib.Path, command: list[str], retries: int, processes: int = 1
  ) -> 'Launch':
    """Returns the launch that may fail `retries` more times."""
    failures = len(read(folder)['failures']) + retries
    return cls(name, str(folder), tuple(command), failures, processes)


def read(folder: str | pathlib.Path) -> dict:
  """Returns the state of a run as its last attempt left it."""
  state = json_text.read(pathlib.Path(folder) / FOLDER / 'state.json', {})
  return {'state': '', 'attempts': 0, 'failures': [], 'job': '', **state}


def attempt(
  launch: Launch,
  job: str = '',
  process_index: int = 0,
  on_start: Callable[[subprocess.Popen], None] = lambda process: None,
  environment: Mapping[str, str] | None = None,
  **options: Any,
) -> str:
  """Runs the command once and records its outcome.

  Args:
    job: of the cluster; '' on this machine.
    process_index: of several processes of one run the first keeps the record, the others a log.
    on_start: is given the process once it runs.
    environment: of the process; None for that of this one.
    options: further ones of subprocess.Popen.

  Returns:
    FINISHED, PREEMPTED or FAILED.
  """
  folder = pathlib.Path(launch.folder) / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  before = read(launch.folder)
  if process_index:
    log = folder / f'process_{process_index}.log'
  else:
    number = before['attempts'] + 1
    log = folder / f'{number}.log'
  with open(log, 'a', encoding='utf-8') as out:
    process = subprocess.Popen(
      launch.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, **options
    )
  on_start(process)
  if process_index:
    return outcome(process.wait())
  state = before | {
    **{'state': RUNNING, 'attempts': number, 'started': lock.now(), 'ended': None},
    **{'job': job, 'host': socket.gethostname(), 'pid': process.pid},
  }
  json_text.write(folder / 'state.json', state)
  code = process.wait()
  ended = lock.now()
  state |= {'state': outcome(code), 'ended': ended}
  if state['state'] == FAILED:
    error, traceback = explain(log.read_text('utf-8', 'replace'), code)
    failure = {
      **{'attempt': number, 'exit_code': code, 'at': ended, 'host': state['host']},
      **{'error': error, 'traceback': traceback},
    }
    state['failures'] = [*state['failures'], failure]
  json_text.write(folder / 'state.json', state)
  return state['state']


def outcome(code: int) -> str:
  """Returns the meaning of an exit code of experiments.main."""
  if code == 0:
    return FINISHED
  return PREEMPTED if code == SAVED or code in ENDED_BY_SIGTERM else FAILED


def may_retry(launch: Launch) -> bool:
  """Returns whether a run whose last attempt failed should be restarted.

  It should not after too many failures, nor after a mistake in its config, which would fail again.
  Of several processes, one that does not find the others ends with that code too, and may find them
  later.
  """
  failures = read(launch.folder)['failures']
  is_mistake = failures[-1]['exit_code'] == MISTAKE and launch.processes == 1
  return len(failures) <= launch.max_failures and not is_mistake


def explain(output: str, code: int) -> tuple[str, str]:
  """Returns the line that says why an attempt failed, and its traceback or last lines."""
  lines = output.rstrip().splitlines()
  said = next((line for line in reversed(lines) if line.startswith('error: ')), '')
  start = output.rfind('Traceback (most recent call last)')
  traceback = output[start:] if start >= 0 else '\n'.join(lines[-30:])
  # What was printed before may follow the traceback, since Python keeps it back in a file.
  raised = [x for x in traceback.splitlines()[1:] if x[:1].strip()] if start >= 0 else []
  error = said or (raised or [line for line in lines if line.strip()][-1:] or ['no output'])[0]
  if code < 0:
    error = f'killed by {signal.Signals(-code).name} after: {error}'
  return f'exit code {code}: {error}'[:500], traceback[-LONGEST:]


def is_held(folder: str | pathlib.Path) -> bool:
  """Returns whether a process is training in the folder (crt_jax/runs/lock.py)."""
  import fcntl

  try:
    handle = os.open(pathlib.Path(folder) / 'lock', os.O_RDONLY)
  except OSError:
    return False
  try:
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # a file system without locks
    return False
  finally:
    os.close(handle)
  return False
