"""Comparing files with their checksums once a host: the first process does, the others wait for it.

That a host has done so is noted in its temporary folder, with the sizes and times of the files, so
caches may be read-only, and a host that was started again compares anew. Where that folder cannot
be written, every process compares.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from crt_jax import storage

# Files that were changed so shortly before they were compared may change without a new time.
SETTLED_SECONDS = 2.0


def once(files: Sequence[Path], how: str, compare: Callable[[], None]) -> None:
  """Calls `compare`, unless a process of this host has done so since the files were changed.

  Args:
    files: all that it reads; the first one stands for all of them.
    how: what it compares, in words.

  Raises:
    Whatever `compare` raises, or OutOfReach where the files cannot be looked at.
  """
  try:
    states = [storage.retried(path, path.stat) for path in files]
  except storage.MISSING:
    return compare()  # which says what is missing
  found = [[state.st_ino, state.st_size, state.st_mtime_ns] for state in states]
  key = hashlib.sha256(json.dumps([how, found]).encode()).hexdigest().encode()
  newest = max(state.st_mtime for state in states)
  with _note(files[0]) as note:
    if note and note.read() == key and os.fstat(note.fileno()).st_mtime >= newest + SETTLED_SECONDS:
      return
    compare()
    if note:
      note.truncate(0)
      note.write(key)


@contextlib.contextmanager
def _note(path: Path) -> Iterator[BinaryIO | None]:
  """Yields the locked note of this host about some files; None if none can be kept."""
  with contextlib.ExitStack() as opened:
    note = None
    with contextlib.suppress(OSError):
      folder = Path(tempfile.gettempdir()) / f'crt_jax-{os.getuid()}'
      folder.mkdir(mode=0o700, exist_ok=True)
      if folder.stat().st_uid == os.getuid():
        name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
        note = opened.enter_context((folder / name).open('a+b'))
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
    yield note
