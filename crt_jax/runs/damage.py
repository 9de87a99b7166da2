"""Decides whether an error in reading a checkpoint means damaged files."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from crt_jax import storage
from crt_jax.cluster import agreement
from crt_jax.runs.checksums import Damaged, Mismatch

UNREAD_SECONDS = 30.0  # within which all processes have to find a checkpoint damaged
# TensorStore's messages for a chunk that is missing, cut short or garbled.
_GARBLED = re.compile('(DATA_LOSS|FAILED_PRECONDITION|INVALID_ARGUMENT|NOT_FOUND|OUT_OF_RANGE): ')


def read(folder: pathlib.Path, read: Callable, *arguments: Any) -> Any:
  """Returns what the function `read` finds in the folder of a checkpoint.

  Raises:
    Damaged: its files are not what was written.
    OutOfReach: they could not be read, which says nothing against them (storage.py).
    ValueError: only some of several processes find them damaged, or they are of another model.
  """
  try:
    return storage.retried(folder, read, *arguments)
  except Exception as error:
    if not is_damage(error) or not folder.is_dir():
      raise
    refuse_if_others_read_it(folder, error)
    raise Damaged(one_line(error)) from None


def is_damage(error: Exception) -> bool:
  """Returns whether an error shows that a checkpoint's files are damaged.

  A checksum, a missing or cut chunk, and a format that cannot be read show it. Structure and shapes
  have been compared before arrays are read (checksums.py), so a parse error is not caused by the
  config. Any other error, such as one of the device or full memory, does not show damage.
  """
  causes = list(storage.causes(error))
  if isinstance(error, Mismatch) or storage.trouble(error) or 'RESOURCE_EXHAUSTED' in str(error):
    return False
  if any(isinstance(cause, jax.errors.JaxRuntimeError) for cause in causes):  # of the device
    return False
  if any(isinstance(cause, Damaged) or _GARBLED.match(str(cause)) for cause in causes):
    return True
  return isinstance(error, (*storage.MISSING, ValueError, KeyError))


def refuse_if_others_read_it(path: pathlib.Path, error: Exception) -> None:
  """Raises ValueError unless every process fails to read a checkpoint as this one does.

  Otherwise the cause may be this host's disk or network, or damage in the part that only this
  process reads; the others wait for it in the middle of reading, so they cannot choose another
  checkpoint.
  """
  others = agreement.alone_in(f'damaged/{path}', UNREAD_SECONDS)
  me, count = jax.process_index(), jax.process_count()
  if me in others:
    raise ValueError(f'{path} was given up: another process cannot read it') from None
  if others:
    raise ValueError(
      f'{path} cannot be read by process {me} of {count} ({one_line(error)}), while process '
      f'{others[0]} had no complaint; nothing was changed. If that host sees the files that the '
      'others see, they are damaged: move this folder away to continue from the one before'
    ) from None


def one_line(error: Exception) -> str:
  """Returns an error in a few words; messages of storage libraries run over pages."""
  text = (str(error).strip() or type(error).__name__).splitlines()[0]
  if isinstance(error, OSError):
    return error.strerror or text
  for cause in (
    'No space left on device',
    'Disk quota exceeded',
    'File too large',
    'Permission denied',
  ):
    if cause in text:
      return cause
  return text if len(text) <= 200 else text[:197] + '...'
