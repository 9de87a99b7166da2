"""Paths that a user gives, files that are written whole, and files that cannot be read just now.

A stale handle of a network file system, missing rights, too many open files or a disk's I/O error
is no damage. Reading is tried again a few times; then the caller gets one line, and nothing was
moved, deleted or built anew.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from crt_jax import staging

WAITS = (0.2, 1.0, 3.0)  # seconds before each further try
# mountpoint-s3 would not do: it neither renames nor appends.
MOUNTS = {'gs': 'gcsfuse', 's3': 'rclone mount --vfs-cache-mode full'}
# Missing is evidence, as is a folder in the place of a file.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# What a lock gives on a file system that has none.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# TensorStore tells errors in words only: '...: Stale file handle [os_error_code='116']'.
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'")
_UNREACHABLE = re.compile(r'(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|'
                          r'UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): ')  # fmt: skip
# What a disk, a network or a full table of files gives, and what may pass.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE}

Read = TypeVar('Read')


class OutOfReach(OSError):
  """A file could not be read, and that is no evidence of damage."""


def cache_folder(name: str = 'CRT_JAX_CACHE', path: str = '') -> Path:
  """Returns the folder for whatever can be made again: tokens, copies, compiled programs.

  Args:
    name: of the field that `path` is from, for messages.
    path: '' = $CRT_JAX_CACHE, or a folder of this user.
  """
  return local_path(name, path or os.environ.get('CRT_JAX_CACHE') or '~/.cache/crt_jax')


def local_path(name: str, path: str | Path, reads: bool = False) -> Path:
  """Returns the path of a flag or field, which may begin with ~.

  Args:
    name: of the flag or field.
    path: as it was given.
    reads: it is only read, so that it may lie in a bucket, of which a copy is made (staging.py).

  Raises:
    ValueError: this machine knows no such home directory, or it is a bucket that cannot be used;
      names the field.
  """
  if scheme := re.match(r'(\w+)://', str(path)):
    if reads and scheme[1] in staging.READERS:
      return staging.staged(name, str(path), cache_folder() / 'staged')
    mount = MOUNTS.get(scheme[1], 'FUSE')
    raise ValueError(
      f'{name}={path!r}: only file systems are read and written; mount the bucket ({mount}) and '
      'give the folder'
    )
  try:
    return Path(path).expanduser()
  except RuntimeError:
    raise ValueError(
      f'{name}={path!r}: there is no home directory here; set {name} to a whole path'
    ) from None


def write_file(path: Path, content: bytes) -> None:
  """Writes a file atomically: who reads it, also after a crash, finds the old or the new one."""
  scratch = path.with_name(f'{path.name}.{os.getpid()}.partial')
  with scratch.open('wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  scratch.replace(path)


@contextlib.contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
  """Yields a folder to write into, which becomes `folder` at the end and goes away on an error."""
  folder = Path(folder)
  scratch = folder.with_name(f'{folder.name}.{secrets.token_hex(4)}.partial')
  scratch.mkdir(parents=True)
  try:
    yield scratch
    os.rename(scratch, folder)
  except BaseException:
    shutil.rmtree(scratch, ignore_errors=True)
    raise


def retried(path: str | Path, read: Callable[..., Read], *arguments: Any, **options: Any) -> Read:
  """Returns what `read` returns, which is called again where a file could not be read.

  Args:
    path: what the message names where the error names no file.

  Raises:
    OutOfReach: it still could not. Whatever else `read` raises, at once.
  """
  for wait in (*WAITS, None):
    try:
      return read(*arguments, **options)
    except Exception as error:
      said = trouble(error)
      if said is None or isinstance(error, OutOfReach):
        raise
      file = next((e.filename for e in causes(error) if getattr(e, 'filename', None)), path)
    if wait is not None:
      time.sleep(wait)
  raise _out_of_reach(file, said)


def trouble(error: BaseException) -> str | None:
  """Returns the system's words, as 'Stale file handle', where a file could not be read.

  Returns None for any other error, also for a file that is missing.
  """
  for cause in causes(error):
    if isinstance(cause, OSError) and not isinstance(cause, MISSING):
      return cause.strerror or str(cause)
    text = str(cause)
    if code := _OS_ERROR.search(text):
      missing = isinstance(OSError(int(code[1]), ''), MISSING)
      return None if missing else os.strerror(int(code[1]))
    if status := _UNREACHABLE.match(text):
      return status[1]
    if isinstance(cause, MemoryError):
      return 'Cannot allocate memory'
  return None


def refuse_passing(path: str | Path, error: OSError) -> None:
  """Raises OutOfReach for an error of a disk or network that says nothing against a file."""
  if error.errno in _PASSING:
    raise _out_of_reach(path, error.strerror) from None


def _out_of_reach(path: str | Path, said: str | None) -> OutOfReach:
  return OutOfReach(f'{path}: {said}; nothing was changed; run the same command again')


def causes(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and those that led to it."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__
