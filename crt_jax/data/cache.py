"""Folders that are built once and appear complete or not at all.

A folder is built under another name and renamed when all of it is on disk, so an interrupted build
leaves nothing that could be taken for data. A file lock lets one of several processes build while
the others wait; the system releases it when its holder dies.

A damaged folder is renamed, never deleted: a job that has mapped its files goes on reading them
under the new name, while on NFS a deleted file would end a job of another host. It stays as
NAME.damaged-N until a person deletes it.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from crt_jax import storage
from crt_jax.data.token_files import DamagedCache
from crt_jax.program import runs

Opened = TypeVar('Opened')


@dataclasses.dataclass(frozen=True)
class Shared:
  """Work for a folder that several processes do together before one of them builds it.

  Attributes:
    folder: what is made for it. It outlives an interruption, and goes away when all is done.
    work: does it, until it is done or the folder to be built is there.
  """

  folder: Path
  work: Callable[[], Any]


def open_or_build(
  folder: Path,
  open_folder: Callable[[Path], Opened],
  build: Callable[[Path], None],
  shared: Shared | None = None,
) -> Opened:
  """Opens `folder`; builds it first where it is missing, or damaged.

  Args:
    folder: where it is to be.
    open_folder: opens it; raises FileNotFoundError or DamagedCache when it cannot be used.
    build: writes everything into the empty folder it is given.
    shared: what is done first, without a lock.

  Raises:
    OSError: the place cannot be written. Whatever `build` raises, after its unfinished folder was
      removed.
    OutOfReach: it cannot be read, which says nothing against it; nothing was changed.
  """
  with contextlib.suppress(FileNotFoundError, DamagedCache):
    return open_folder(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  if shared is None:
    return _build_alone(folder, open_folder, build)
  try:
    if not folder.exists():
      shared.work()
    opened = _build_alone(folder, open_folder, build)
  except OSError as error:
    try:
      opened = open_folder(folder)  # another process has finished, and tidied up
    except (FileNotFoundError, DamagedCache):
      raise error from None
  except ValueError:  # a mistake: with other text it is other work
    shutil.rmtree(shared.folder, ignore_errors=True)
    raise
  shutil.rmtree(shared.folder, ignore_errors=True)
  return opened


def _build_alone(
  folder: Path, open_folder: Callable[[Path], Opened], build: Callable[[Path], None]
) -> Opened:
  with _lock(folder.with_name(folder.name + '.lock')):
    try:
      return open_folder(folder)  # another process may have built it while this one waited
    except FileNotFoundError:
      pass
    except DamagedCache as damage:
      logging.warning('%s; building it again', damage)
    _tidy_up(folder)
    _build(folder, open_folder, build)
    return open_folder(folder)


def _build(folder: Path, open_folder: Callable, build: Callable[[Path], None]) -> None:
  unfinished = folder.with_name(f'{_unfinished(folder)}-{os.getpid()}-{secrets.token_hex(4)}')
  unfinished.mkdir()
  try:
    build(unfinished)
    for path in [*unfinished.rglob('*'), unfinished]:
      _to_disk(path)
    try:
      _set_damaged_aside(folder, open_folder)
      unfinished.rename(folder)
    except OSError as error:  # only where locks do not work can another process have been first
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
    else:
      _to_disk(folder.parent)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _tidy_up(folder: Path) -> None:
  """Removes what processes of this host that died have left of builds of this folder.

  Without locks, another process of this host may build it too.
  """
  for left in folder.parent.glob(f'{_unfinished(folder)}-*'):
    process = re.fullmatch(r'(\d+)-[0-9a-f]{8}', left.name.removeprefix(f'{_unfinished(folder)}-'))
    # One with the number of this process is of another that had it, as in a container.
    if process and (int(process[1]) == os.getpid() or not runs(int(process[1]))):
      shutil.rmtree(left, ignore_errors=True)


def _unfinished(folder: Path) -> str:
  """Returns how the names of this host's unfinished builds begin."""
  return f'{folder.name}.tmp-{socket.gethostname()}'


def _set_damaged_aside(folder: Path, open_folder: Callable) -> None:
  """Renames a folder that is still damaged.

  There may be none, or a whole one that another process has built meanwhile.
  """
  try:
    open_folder(folder)
  except FileNotFoundError:
    pass
  except DamagedCache:
    number = 0
    while (aside := folder.with_name(f'{folder.name}.damaged-{number}')).exists():
      number += 1
    folder.rename(aside)
    logging.warning('%s holds what was damaged; delete it when no job reads it any more', aside)


def _to_disk(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
  """Holds an exclusive lock; where the file system has none, the rename must do."""
  with path.open('w', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.warning('another process prepares %s; waiting for it', path.with_suffix(''))
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      if error.errno not in storage.NO_LOCKS:
        raise
      logging.warning('%s: this file system has no locks; the work may be done twice', path)
    yield
