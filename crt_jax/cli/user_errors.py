"""Tells a user's mistake, shown in one line, from an internal error, shown with its traceback.

crt_jax raises ValueError with one line that names the field or file and the fix, and lets OSError
from the file system pass. `describe` recognises both; everything else is an internal error.
"""

import dis
import errno
from types import TracebackType

OWN_PACKAGES = ('crt_jax', 'experiments', 'configs', '__main__')

# Errors that a person can fix: a wrong path, missing rights, a full disk, storage that is
# unreachable for a moment. Other codes are internal errors.
USER_ERRNOS = frozenset(
  getattr(errno, name)
  for name in (
    'ENOENT EACCES EPERM ENOTDIR EISDIR EEXIST EROFS ENAMETOOLONG ELOOP ENOSPC EDQUOT EFBIG '
    'ESTALE EIO EMFILE ENFILE ENOMEM ETIMEDOUT ENOLCK'
  ).split()
)


class Mistake(Exception):
  """A mistake in the command itself; `str()` is its one-line message.

  It is no ValueError, because absl rewrites those that are raised while it reads flags.
  """


def did_you_mean(suggestion: str | None) -> str:
  """Returns '; did you mean X?' to end a sentence with, or nothing."""
  return f'; did you mean {suggestion}?' if suggestion else ''


def describe(error: BaseException) -> str | None:
  """Returns the line to show for a user's mistake, or None for an internal error.

  A mistake is a `Mistake`, a one-line ValueError that a `raise` in our own packages raised (not
  one that a library or a failed conversion raised below it), or an OSError of the file system.
  """
  message = str(error)
  if isinstance(error, Mistake):
    return message
  if isinstance(error, OSError):
    if error.errno in USER_ERRNOS:
      where = (
        error.filename if error.filename2 is None else f'{error.filename} or {error.filename2}'
      )
      where = f'{where}: ' if error.filename is not None else ''
      return f'{where}{error.strerror} (--traceback shows where)'
    is_candidate = error.errno is None
  else:
    is_candidate = isinstance(error, ValueError)
  is_one_line = bool(message) and '\n' not in message
  return message if is_candidate and is_one_line and _raised_by_us(error.__traceback__) else None


def _raised_by_us(traceback: TracebackType | None) -> bool:
  """Returns whether the innermost frame is in our code and at a `raise` statement."""
  if traceback is None:
    return False
  while traceback.tb_next is not None:
    traceback = traceback.tb_next
  frame = traceback.tb_frame
  module = frame.f_globals.get('__package__') or frame.f_globals.get('__name__') or ''
  # A failed int('x') or unpacking has no frame of its own, so the instruction must be `raise`.
  instruction = frame.f_code.co_code[traceback.tb_lasti]
  return module.partition('.')[0] in OWN_PACKAGES and instruction == dis.opmap['RAISE_VARARGS']
