"""Messages between the processes of one run, besides their collectives.

JAX's coordination service holds short texts that every process can read. It has two uses here:

require_equal  Before anything is compiled, all processes compare what has to be the same: package
               versions, config, data, work directory. A difference ends all of them with one line
               that names the field, both values and both processes.
Companions     A process that ends by an error publishes the reason first. The others receive it
               within seconds, print it and end with the same code, wherever they are waiting. If a
               process dies without a message, the collective that it leaves fails (CPU), or JAX's
               own heartbeat (launcher.HEARTBEAT_SECONDS) ends the others with JAX's message.

Neither this module nor checkpoints and caches compare clocks of different hosts: waiting times are
measured on each host's own monotonic clock.
"""

import contextlib
import hashlib
import json
import platform
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import jax

from crt_jax import data, schema
from crt_jax.cluster.launcher import wait_until
from crt_jax.cluster.preemption import StopSignal, leave
from crt_jax.runs.provenance import commit, versions

PREFIX = 'crt_jax'
EQUAL_SECONDS = 600  # time for the slowest process to reach the same comparison
DATA_SECONDS = 24 * 3600  # the same where hosts may have tokenized a corpus each before it
LISTEN_EVERY = 1.0  # seconds
LINGER_SECONDS = 10.0  # process 0 stays so long, since the messages end with it

# Parts of the error message of a collective that another process has left.
BROKEN = (
  'gloo',
  'nccl',
  'connection closed',
  'connection reset',
  'coordination',
  'heartbeat',
  'barrier',
)


class _Here(NamedTuple):
  """The coordination service and this process's number, before JAX has looked for devices."""

  service: Any
  process: int
  count: int


def _here() -> _Here | None:
  """Returns the service and this process's number; None in a run of one process."""
  from jax._src import distributed  # JAX has no public name for it; Orbax uses the same

  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    return None
  return _Here(state.client, state.process_id, state.num_processes)


def require_equal(what: str, value: dict[str, Any], seconds: int = EQUAL_SECONDS) -> None:
  """Returns when all processes have called it with the same value; ValueError if they differ.

  Args:
    what: the name of the value, each used once in a run.
    value: nested dicts of what JSON can hold.
    seconds: to wait for the slowest process; one that ends is noticed sooner.

  Raises:
    ValueError: they differ; on every process the same line.
  """
  here = _here()
  if here is None:
    return
  service, me, _ = here
  folder = f'{PREFIX}/{what}'
  text = json.dumps(schema.flat(value), sort_keys=True, default=str)
  service.key_value_set(f'{folder}/value/{me}', text)
  service.key_value_set(f'{folder}/digest/{me}', hashlib.sha256(text.encode()).hexdigest())
  service.wait_at_barrier(folder, seconds * 1000)
  if me == 0:  # reads all N values, so that the others read one verdict each
    service.key_value_set(f'{folder}/verdict', json.dumps(_first_difference(here, what)))
  line = json.loads(service.blocking_key_value_get(f'{folder}/verdict', EQUAL_SECONDS * 1000))
  if line is not None:
    raise ValueError(line)


def _first_difference(here: _Here, what: str) -> str | None:
  """Returns the message for the first process that differs from process 0; None if none does."""
  found = here.service.key_value_dir_get(f'{PREFIX}/{what}/digest/')
  digests = {int(name.rpartition('/')[2]): digest for name, digest in found}
  other = next((i for i in range(here.count) if digests[i] != digests[0]), None)
  if other is None:
    return None
  texts = [here.service.key_value_try_get(f'{PREFIX}/{what}/value/{i}') for i in (0, other)]
  return difference(what, other, here.count, *map(json.loads, texts))


def of_first(what: str, value: Any) -> Any:
  """Returns process 0's JSON value on every process; `name` must be used only once in a run."""
  here = _here()
  if here is None:
    return value
  service, me, _ = here
  if me == 0:
    service.key_value_set(f'{PREFIX}/{what} of the first', json.dumps(value))
  return json.loads(
    service.blocking_key_value_get(f'{PREFIX}/{what} of the first', EQUAL_SECONDS * 1000)
  )


def alone_in(what: str, seconds: float) -> list[int]:
  """Reports that this process met an event that all processes have to meet.

  Args:
    what: the name of it, each used once in a run.
    seconds: to wait for the others, who have a little less or more to do before it.

  Returns:
    The processes that did not say so in time; [] where all did. The same on all that ask, also on
    those that come too late, whose own number is in it.
  """
  here = _here()
  if here is None:
    return []
  service, me, count = here
  folder = f'{PREFIX}/{what}/'
  service.key_value_set(f'{folder}{me}', '')
  wait_until(lambda: len(service.key_value_dir_get(folder)) == count, seconds)
  said = {int(name.rpartition('/')[2]) for name, _ in service.key_value_dir_get(folder)}
  verdict = f'{PREFIX}/verdict of {what}'
  with contextlib.suppress(Exception):  # another process was first, and its verdict counts
    service.key_value_set(verdict, json.dumps([i for i in range(count) if i not in said]))
  return json.loads(service.key_value_try_get(verdict))


def difference(what: str, process: int, count: int, first: dict, other: dict) -> str:
  """Returns the message for a process that differs from process 0; both as `flat` gives them."""
  absent = '(absent)'
  names = [
    name
    for name in dict.fromkeys([*first, *other])
    if first.get(name, absent) != other.get(name, absent)
  ]
  shown = '; '.join(
    f'{name} is {other.get(name, absent)!r} there and {first.get(name, absent)!r} on process 0'
    for name in names[:3]
  )
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return (
    f'process {process} of {count} has other {what} than process 0: {shown}{more}; '
    f'{ADVICE.get(what, "start all with the same command")}'
  )


ADVICE = {
  'versions': 'install the same packages and the same commit everywhere',
  'data': 'delete the cache of that host (data.cache_dir), or share one between all',
  'config': 'start all with the same command, or separate runs with --distributed=off',
  'work directory': '--workdir must be on a file system that all hosts share',
}


def software() -> dict[str, Any]:
  """Returns what must be equal for processes to compile the same programs; asks for no device."""
  python = '.'.join(platform.python_version_tuple()[:2])
  return {'python': python, **versions(), 'commit': commit()}


def require_equal_data(dataset: data.Dataset) -> None:
  """Returns when all processes have the same data; ValueError if they differ."""
  require_equal('data', data_identity(dataset), DATA_SECONDS)


def data_identity(dataset: data.Dataset) -> dict[str, Any]:
  """Returns what must be equal of the data: its identity and the hash of every manifest.

  A manifest, which packed text has, contains checksums of all tokens.
  """
  found: dict[str, Any] = {'identity': dataset.identity}
  for name, packed in dataset.validation_sets.items():
    manifest = getattr(packed, 'manifest', None)
    if manifest is not None:
      decisive = {
        key: value for key, value in manifest.items() if key not in ('versions', 'overlap')
      }
      text = json.dumps(decisive, sort_keys=True).encode()
      found[f'manifest of {name}'] = hashlib.sha256(text).hexdigest()
  return found


class Companions:
  """The other processes of a run: hears when one ends, and tells them when this one does.

  Use as a context manager around all that the processes do together; it costs one alone nothing.
  """

  def __init__(
    self,
    stop: StopSignal,
    describe: Callable[[BaseException], str | None] = lambda error: None,
  ):
    """Prepares to share ends of processes.

    `stop` tells the others when it ends this process; `describe(error)` returns the line for a
    user's mistake, or None for an internal error that needs a traceback
    (crt_jax/cli/user_errors.py).
    """
    self._stop, self._describe = stop, describe
    self._here = _here()
    self._left = threading.Event()
    self._thread = threading.Thread(target=self._listen, daemon=True)

  def __enter__(self):
    if self._here is not None:
      self._thread.start()
      self._stop.tell = self._tell
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ):
    if self._here is None:
      return
    if error is None or getattr(error, 'together', False):
      # Leaving now would end this process with another exit code than the others.
      self._stop.ignore()
      self._here.service.wait_at_barrier(f'{PREFIX}/end', EQUAL_SECONDS * 1000)
      self._left.set()
      self._thread.join()
      jax.distributed.shutdown()
      return
    self._end_alone(error)

  @property
  def _there(self) -> '_Here':
    """The place of this process; used only if there are several."""
    assert self._here is not None
    return self._here

  def _end_alone(self, error: BaseException) -> None:
    """Tells the user and the other processes why this process ends, and ends it."""
    me = f'process {self._there.process} of {self._there.count}'
    text = shortened(' '.join(str(error).split()))
    if isinstance(error, Exception) and any(word in text.lower() for word in BROKEN):
      # If the other process has published its reason, the listening thread ends this one first.
      time.sleep(2 * LISTEN_EVERY)
      code, said = 1, f'{me} lost another one ({text})'
      shown = f'error: {said}; run the same command to continue from the last checkpoint'
    elif isinstance(error, SystemExit):
      code = error.code if isinstance(error.code, int) else int(error.code is not None)
      said, shown = f'{me} stopped', error.code if isinstance(error.code, str) else ''
    elif line := self._describe(error):
      code, said, shown = 2, f'{me} stopped: {line}', f'error: {line}'
    else:
      code, said, shown = 1, f'{me} stopped: {type(error).__name__}: {text}', ''
      sys.excepthook(type(error), error, error.__traceback__)
    print(shown, end='\n' if shown else '', file=sys.stderr)
    self._end(code, said)
    leave(code)

  def _listen(self) -> None:
    """Ends this process when another one reports that it ends."""
    while not self._left.wait(LISTEN_EVERY):
      try:
        ended = json.loads(self._there.service.key_value_try_get(f'{PREFIX}/ended'))
      except Exception:  # no process ended, or the service is gone, which JAX detects itself
        continue
      if self._left.is_set():
        return
      print(f'error: {ended["said"]}; this one stops too', file=sys.stderr)
      self._wait_for_ears()
      leave(ended['code'])

  def _tell(self, code: int, reason: str) -> None:
    """Tells the other processes that a signal ends this one; `stop` calls it."""
    self._end(code, f'process {self._there.process} of {self._there.count} was {reason}')

  def _end(self, code: int, said: str) -> None:
    self._left.set()
    with contextlib.suppress(Exception):  # another process was first, and its reason counts
      self._there.service.key_value_set(f'{PREFIX}/ended', json.dumps({'code': code, 'said': said}))
    self._wait_for_ears()

  def _wait_for_ears(self) -> None:
    """Waits in process 0 until the others have heard, since the messages end with it."""
    service, me, count = self._there
    with contextlib.suppress(Exception):
      service.key_value_set(f'{PREFIX}/heard/{me}', '')
      if me == 0:
        wait_until(
          lambda: len(service.key_value_dir_get(f'{PREFIX}/heard/')) == count, LINGER_SECONDS
        )


def shortened(text: str) -> str:
  return text if len(text) <= 200 else f'{text[:197]}...'
