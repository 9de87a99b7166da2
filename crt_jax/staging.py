"""Files in a bucket that are only read: copied to the cache of this machine, then read as its own.

A copy lies under a name that follows from what the bucket lists (names, sizes, versions), so it is
made once, and anew when the bucket changes. It keeps the times of the objects: data that is known
by them is the same on every machine.
"""

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from crt_jax.program import install

READERS = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}  # the package that reads it, its extra
VERSION = ('generation', 'VersionId', 'etag', 'ETag')  # what tells objects of one size apart


def staged(name: str, url: str, root: Path) -> Path:
  """Returns the copy of an object, of all below a folder, or of what a glob matches (as a glob).

  Args:
    name: of the field, for messages.
    url: where its scheme is one of READERS.

  Raises:
    ValueError: nothing is there, it cannot be read, or a package is missing.
  """
  package, extra = READERS[url.partition('://')[0]]
  if importlib.util.find_spec(package) is None:
    raise ValueError(f'{name}={url!r} needs {package}; {install(extra)}')
  try:
    return _staged(url, root)
  except FileNotFoundError:
    raise ValueError(f'{name}={url!r}: nothing is there') from None
  except Exception as error:  # each library has its own
    line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise ValueError(f'{name}={url!r} cannot be read ({line})') from None


@functools.cache
def _staged(url: str, root: Path) -> Path:
  import fsspec

  files, path = fsspec.url_to_fs(url.rstrip('/'))
  base = PurePosixPath(path)
  if any(c in path for c in '*?['):
    found = files.glob(path, detail=True)
    base = next(p for p in base.parents if not any(c in str(p) for c in '*?['))
  elif files.isdir(path):
    found = files.find(path, detail=True)
  else:
    found, base = {path: files.info(path)}, base.parent
  found = {key: about for key, about in found.items() if about['type'] == 'file'}
  if not found:
    raise FileNotFoundError(url)
  listing = [
    [key, about['size'], *(str(about[name]) for name in VERSION if name in about)]
    for key, about in found.items()
  ]
  digest = hashlib.sha256(json.dumps([url, sorted(listing)]).encode()).hexdigest()[:16]
  if not (root / digest).is_dir():
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f'{digest}.partial-', dir=root))
    try:
      for key in found:
        copy = scratch / PurePosixPath(key).relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(key, str(copy))
        time = files.modified(key).timestamp()
        os.utime(copy, (time, time))
      if not (root / digest).is_dir():  # another process of this host may have been first
        scratch.rename(root / digest)
    finally:
      shutil.rmtree(scratch, ignore_errors=True)
  return root / digest / PurePosixPath(path).relative_to(base)
