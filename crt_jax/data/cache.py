"""Folders that are built once and appear complete or not at all.

A folder is built under another name and renamed when all of it is on disk, so an interrupted build
leaves nothing that could be taken for data. A file lock lets one of several processes build while
the others wait; the system releases it when its holder dies.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from absl import logging

from crt_jax.data.token_files import DamagedCache

Opened = TypeVar('Opened')


def open_or_build(
  folder: Path, open_folder: Callable[[Path], Opened], build: Callable[[Path], None]
) -> Opened:
  """Opens `folder`; builds it first where it is missing, or damaged.

  Args:
    folder: where it is to be.
    open_folder: opens it; raises FileNotFoundError or DamagedCache when it cannot be used.
    build: writes everything into the empty folder it is given.

  Raises:
    OSError: the place cannot be written. Whatever `build` raises, after its unfinished folder was
      removed.
  """
  with contextlib.suppress(FileNotFoundError, DamagedCache):
    return open_folder(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  with _lock(folder.with_name(folder.name + '.lock')) as locked:
    try:
      return open_folder(folder)  # another process may have built it while this one waited
    except FileNotFoundError:
      pass
    except DamagedCache as damage:
      logging.warning('%s; building it again', damage)
      _remove(folder)
    if (
      locked
    ):  # nobody else is building this folder: what lies there was left by a process that died
      for left in folder.parent.glob(f'{folder.name}.tmp-*'):
        shutil.rmtree(left, ignore_errors=True)
    _build(folder, build)
    return open_folder(folder)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
  unfinished = folder.with_name(f'{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}')
  unfinished.mkdir()
  try:
    build(unfinished)
    for path in [*unfinished.rglob('*'), unfinished]:
      _to_disk(path)
    try:
      unfinished.rename(folder)
    except OSError as error:  # only where locks do not work can another process have been first
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
    else:
      _to_disk(folder.parent)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _remove(folder: Path) -> None:
  """Takes a folder away under its name at once, then deletes it."""
  aside = folder.with_name(f'{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}')
  folder.rename(aside)
  shutil.rmtree(aside, ignore_errors=True)


def _to_disk(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
  """Holds an exclusive lock; yields False where the file system has none and the rename must do."""
  with path.open('w', encoding='utf-8') as file:
    locked = True
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.warning('another process prepares %s; waiting for it', path.with_suffix(''))
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
      logging.warning('%s: this file system has no locks; the work may be done twice', path)
      locked = False
    yield locked
