"""Who trains in a work directory: the file `lock` in it is locked and names its holder.

The file is opened for writing, since NFS gives no exclusive lock otherwise. Its text is JSON: host,
process, since when, and `refreshed`, which a thread of the holder renews. The text counts where the
lock does not: on a file system without locks, or one whose locks end at each host. It is empty
when nobody holds it. A holder on another host lives if its text changes while one looks; clocks of
two hosts are never compared.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

from crt_jax import storage
from crt_jax.cluster import preemption
from crt_jax.program import runs, warn

NAME = 'lock'
REFRESH_SECONDS = 5.0
LOOK_SECONDS = 16.0  # a living holder renews the file in this time, also on a slow NFS
LAST_WRITER_SECONDS = 1.0  # without locks, two simultaneous starts wait to see who wrote last
LENGTH = 512  # constant length of the text, so that one write replaces all of it


class Lock:
  """A held lock; it ends with the process, however that ends."""

  def __init__(self, handle: int):
    self._handle = handle
    self._since = now()
    self._released = threading.Event()
    self._write()
    self._thread = threading.Thread(target=self._refresh, daemon=True)
    self._thread.start()

  def release(self) -> None:
    """Unlocks the directory, unless another process has taken it over."""
    self._released.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if is_mine(_read(self._handle)):
        os.ftruncate(self._handle, 0)
    os.close(self._handle)

  def _write(self) -> None:
    text = {'host': socket.gethostname(), 'process': os.getpid()}
    text |= {'since': self._since, 'refreshed': now()}
    os.pwrite(self._handle, json.dumps(text).encode().ljust(LENGTH), 0)
    os.fsync(self._handle)

  def _refresh(self) -> None:
    while not self._released.wait(REFRESH_SECONDS):
      with contextlib.suppress(OSError):  # a full disk or a stale handle; tried again later
        found = _read(self._handle)
        if found and not is_mine(found):  # after a pause that made this process look dead
          warn(f'taken over by {named(found)}, which trains in this directory; this process ends')
          return preemption.leave(1)
        self._write()


_held: list[Lock] = []


def hold(path: pathlib.Path) -> None:
  """Locks a work directory for the lifetime of this process.

  Raises:
    ValueError: another process holds it; the line says who.
    OSError: the file cannot be written.
  """
  found = holder(path)
  handle = os.open(path / NAME, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    is_locked = _lock(path, handle)
    # A living process of this host would still hold the lock.
    if not (is_locked and is_here(found)) and is_alive(path):
      raise in_use(path, holder(path))
    lock = Lock(handle)
  except BaseException:
    os.close(handle)
    raise
  if not is_locked:
    time.sleep(LAST_WRITER_SECONDS)
    if not is_mine(holder(path)):
      lock.release()
      raise in_use(path, holder(path))
  _held.append(lock)


def _lock(path: pathlib.Path, handle: int) -> bool:
  """Locks the file; returns False, with a warning, if the file system has no locks."""
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise in_use(path, holder(path)) from None
  except OSError as error:
    if error.errno not in storage.NO_LOCKS:
      raise
    warn(
      f'--workdir={path}: this file system has no locks ({error.strerror}); only the text of its '
      f'file {NAME} keeps a second process out'
    )
    return False
  return True


def holder(path: pathlib.Path) -> dict:
  """Returns the file's record of its holder; {} if nobody holds the directory."""
  try:
    handle = os.open(path / NAME, os.O_RDONLY)  # opened each time, which makes NFS ask the server
  except FileNotFoundError:
    return {}
  try:
    return _read(handle)
  finally:
    os.close(handle)


def _read(handle: int) -> dict:
  try:
    text = json.loads(os.pread(handle, LENGTH, 0))
  except ValueError:
    return {}
  return text if isinstance(text, dict) and 'host' in text else {}


def is_mine(found: dict) -> bool:
  """Returns whether this process is the holder."""
  return is_here(found) and found['process'] == os.getpid()


def is_here(found: dict) -> bool:
  """Returns whether a holder is, or was, a process of this host."""
  return found.get('host') == socket.gethostname()


def is_alive(path: pathlib.Path) -> bool:
  """Returns whether the holder renews the file, which takes a while to find out.

  A holder of this host that is gone is known at once.
  """
  found = holder(path)
  if not found or is_here(found) and not runs(found['process']):
    return False
  warn(f'--workdir={path} was held by {named(found)}; waiting to see whether it still is')
  deadline = time.monotonic() + LOOK_SECONDS
  while time.monotonic() < deadline:
    time.sleep(min(1.0, REFRESH_SECONDS / 5))
    seen = holder(path)
    if not seen:
      return False
    if seen != found:
      return True
  return False


def in_use(path: str | pathlib.Path, found: dict) -> ValueError:
  """Returns the message for a directory that has a holder."""
  who = named(found) if found else 'which has not said who it is'
  return ValueError(
    f'--workdir={path} is in use by another process ({who}); wait for it or stop it'
  )


def named(found: dict) -> str:
  """Returns a readable name of a holder."""
  return (
    f'process {found.get("process")} on {found["host"]} since {found.get("since")}, last heard of '
    f'at {found.get("refreshed")}'
  )


def now() -> str:
  """Returns the current time in UTC."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')


@contextlib.contextmanager
def released() -> Iterator[None]:
  """Releases at its end the locks taken inside, for several runs in one process, as in tests."""
  before = len(_held)
  try:
    yield
  finally:
    while len(_held) > before:
      _held.pop().release()


def _release_all() -> None:
  while _held:
    _held.pop().release()


preemption.before_leaving(_release_all)
