"""A run in a bucket, `--workdir=gs://BUCKET/RUN`.

Checkpoints go straight there, from every process (Orbax). All other files are written in a scratch
folder, which each process has for itself: fetched when the run is opened, uploaded whole before a
checkpoint, at the end and when the process leaves. Nothing is appended to an object. So a
checkpoint that is committed finds beside it all that it needs, on any machine.

The lock is the object `lock`, made only where there is none. Its holder renews it, and a dead
holder's is taken over, only as the generation that was seen: two can never both succeed.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from crt_jax import json_text, storage
from crt_jax.cluster import preemption
from crt_jax.program import install, runs, warn
from crt_jax.runs import lock

SCHEME = 'gs://'
FIRST, LAST = 'config.json', 'finished.json'  # what says that there is a run, and that it has ended
COMMITTED = 'commit_success.txt'  # Orbax writes it last
REQUEST_SECONDS = 20.0
RETRY_SECONDS = 90.0  # in which a request that fails or is throttled is sent again
REFRESH_SECONDS = 10.0
LOOK_SECONDS = 45.0  # in which a holder of the lock that lives has renewed it


def is_bucket(path: str | os.PathLike) -> bool:
  """Returns whether a path names a place in a bucket."""
  return str(path).startswith(SCHEME)


def place(path: str | os.PathLike) -> Any:
  """Returns the path of a work directory itself, where its checkpoints are."""
  if not is_bucket(path):
    return pathlib.Path(path)
  from etils import epath

  return epath.Path(path)


def local(path: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of a work directory's small files: itself, or the scratch of its bucket."""
  return opened(str(path)).scratch if is_bucket(path) else pathlib.Path(path)


def hold(path: str | os.PathLike) -> None:
  """Takes the lock of a work directory for as long as this process lives; raises as lock.hold."""
  opened(str(path)).hold() if is_bucket(path) else lock.hold(pathlib.Path(path))


def upload(path: str | os.PathLike) -> None:
  """Brings the small files of a bucket to what the scratch holds; does nothing elsewhere."""
  if is_bucket(path):
    opened(str(path)).upload()


def fetch(path: str | os.PathLike) -> None:
  """Looks again at what another process may have written to a bucket."""
  if is_bucket(path):
    opened(str(path)).fetch()


def steps_on_disk(directory: str | os.PathLike) -> list[int]:
  """Returns the steps that have a committed checkpoint, oldest first; reads names only."""
  if is_bucket(directory):
    path, _, folder = str(directory).rpartition('/')
    return opened(path).steps(folder)
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


@functools.cache
def opened(path: str) -> 'Bucket':
  """Returns the run of a path, fetched.

  Raises:
    ValueError: there is no such bucket, no permission, no package or no name of a run.
    OutOfReach: the bucket does not answer.
  """
  bucket = Bucket(path)
  bucket.fetch()
  preemption.before_leaving(bucket.leave)
  return bucket


def check(path: str, flag: str = '--workdir') -> str:
  """Returns the path of a run in a bucket as all processes write it.

  Raises:
    ValueError: it has no name of a run, or a package is missing; nothing was asked of the bucket.
  """
  name, _, run = path.removeprefix(SCHEME).strip('/').partition('/')
  if not name or not run:
    raise ValueError(f'{flag}={path}: a run needs a name, as in {SCHEME}{name or "bucket"}/run')
  if importlib.util.find_spec('gcsfs') is None:
    raise ValueError(f'{flag}={path} needs gcsfs; {install("gcs")}')
  return f'{SCHEME}{name}/{run}'


class Bucket:
  """One run in a bucket, as this process sees it."""

  def __init__(self, path: str):
    self.path = check(path)
    from google.cloud import storage as client
    from google.cloud.storage.retry import DEFAULT_RETRY

    from crt_jax.runs import bucket_files

    bucket_files.register()
    name, _, run = self.path.removeprefix(SCHEME).partition('/')
    self._prefix = f'{run}/'
    retry = DEFAULT_RETRY.with_timeout(RETRY_SECONDS)
    self._patient = {'retry': retry, 'timeout': REQUEST_SECONDS}
    with self._told():
      self._objects = client.Client(project=None).bucket(name)
    # The name of the folder is that of the run, as trackers show it.
    self.scratch = pathlib.Path(tempfile.mkdtemp(prefix='crt_jax_')) / pathlib.Path(run).name
    self._known: dict[str, tuple[int, int]] = {}  # size and time of what the bucket has
    self._has_left = False
    # The thread that hears signals must not remove files that another one compares: they would
    # count as deleted.
    self._one_at_a_time = threading.Lock()
    self._lock = Lock(self.path, functools.partial(self._blob, lock.NAME), self._patient)

  def fetch(self) -> None:
    """Makes the scratch anew from the small files of the bucket."""
    from google.api_core.exceptions import NotFound

    with self._one_at_a_time, self._told():
      shutil.rmtree(self.scratch, ignore_errors=True)
      self.scratch.mkdir()
      self._known.clear()
      listing = self._list('', delimiter='/')
      found = list(listing)
      for folder in listing.prefixes:  # a run's own, or evidence of something else
        self._file(folder).mkdir()
      for blob in (*found, *self._list('tokenizer/')):
        file = self._file(blob.name)
        if blob.name.endswith('/'):
          continue
        with contextlib.suppress(NotFound):  # deleted by now, as evaluation.partial.json
          blob.download_to_filename(file, **self._patient)
          if file.name != lock.NAME:
            self._known[str(file.relative_to(self.scratch))] = _state(file)

  def upload(self) -> None:
    """Uploads what has changed since, and deletes what is gone."""
    with self._one_at_a_time, self._told():
      if self._has_left:
        return
      files = {
        str(file.relative_to(self.scratch)): file
        for file in self.scratch.rglob('*')
        if file.is_file() and file.suffix != '.partial' and file.name != lock.NAME
      }
      states = {name: _state(file) for name, file in files.items()}
      self._delete(self._prefix + name for name in self._known.keys() - files.keys())
      changed = [name for name, state in states.items() if self._known.get(name) != state]
      for name in sorted(changed, key=lambda name: (name == LAST, name != FIRST, name)):
        self._upload(name, files[name])
      self._known = states

  def steps(self, folder: str) -> list[int]:
    """Returns the steps of the committed checkpoints in a folder."""
    with self._told():
      names = [blob.name for blob in self._list(f'{folder}/', match_glob=f'**/{COMMITTED}')]
    parts = [name.removeprefix(f'{self._prefix}{folder}/').split('/') for name in names]
    return sorted(int(step) for step, *rest in parts if step.isdigit() and rest == [COMMITTED])

  def move(self, what: str, place: str) -> None:
    """Moves all objects below a name to a numbered place.

    A checkpoint is none any more before it is gone.
    """
    with self._told():
      number = 0
      while any(self._list(f'{place}.{number}/', max_results=1)):
        number += 1
      to = f'{place}.{number}'
      blobs = list(self._list(f'{what}/'))
      for blob in blobs:
        target = self._prefix + to + blob.name.removeprefix(self._prefix + what)
        self._objects.copy_blob(blob, self._objects, target, **self._patient)
      self._delete(sorted((b.name for b in blobs), key=lambda name: not name.endswith(COMMITTED)))

  def hold(self) -> None:
    """Takes the lock for as long as this process lives, and looks again at what lies here.

    Raises:
      ValueError: another process holds it; the line says who.
    """
    with self._told():
      self._lock.take()
    self.fetch()

  def leave(self) -> None:
    """Uploads what is left, gives the lock back and removes the scratch."""
    try:
      if not self._lock.is_lost:
        self.upload()
        self._lock.release()
    finally:
      with self._one_at_a_time:
        self._has_left = True
      shutil.rmtree(self.scratch.parent, ignore_errors=True)

  def _upload(self, name: str, file: pathlib.Path) -> None:
    """Uploads a file.

    It begins anew where an upload in parts cannot go on: its last answer got lost, or the server
    forgot it.
    """
    from google.api_core.retry import Retry

    again = Retry(is_lost, timeout=RETRY_SECONDS)
    requests = {**self._patient, 'retry': self._patient['retry'].with_timeout(RETRY_SECONDS / 3)}
    again(self._blob(name).upload_from_filename)(file, **requests)

  def _list(self, below: str, **options: Any) -> Any:
    options |= self._patient
    return self._objects.client.list_blobs(self._objects, prefix=self._prefix + below, **options)

  def _blob(self, name: str) -> Any:
    return self._objects.blob(self._prefix + name)

  def _file(self, name: str) -> pathlib.Path:
    return self.scratch / name.removeprefix(self._prefix)

  def _delete(self, names: Iterable[str]) -> None:
    from google.api_core.exceptions import NotFound

    for name in names:
      with contextlib.suppress(NotFound):
        self._objects.delete_blob(name, **self._patient)

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    """Turns what the libraries say of a request into one line."""
    from google.api_core import exceptions
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from requests import RequestException

    flag, name = f'--workdir={self.path}', self.path.removeprefix(SCHEME).partition('/')[0]
    try:
      yield
    except exceptions.NotFound:
      raise ValueError(f'{flag}: there is no bucket {name}; make it, or correct the name') from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
      raise ValueError(
        f'{flag}: no permission ({said(error)}); the account needs the role Storage Object User on '
        f'the bucket {name}'
      ) from None
    except DefaultCredentialsError:
      raise ValueError(
        f'{flag}: no credentials of Google Cloud; gcloud auth application-default login makes them'
      ) from None
    except (exceptions.GoogleAPIError, GoogleAuthError, RequestException) as error:
      raise storage.OutOfReach(f'{flag}: {said(error)}; run the same command again') from None


class Lock:
  """The object that says who trains in a bucket. Every write names the generation it replaces."""

  def __init__(self, path: str, blob: Callable[[], Any], patient: dict[str, Any]):
    self.is_lost = False
    self._path, self._blob, self._patient = path, blob, patient
    self._text = {'host': socket.gethostname(), 'boot': boot(), 'process': os.getpid()}
    self._text['since'] = lock.now()
    self._generation = 0  # of what this process wrote
    self._released = threading.Event()
    self._thread = threading.Thread(target=self._refresh, daemon=True)

  def take(self) -> None:
    """Takes the lock and renews it from now on; ValueError, which says who, where one holds it."""
    if not self._write(self._free()):
      raise lock.in_use(self._path, self._read()[0])
    self._thread.start()

  def release(self) -> None:
    """Gives it back, if this process holds it."""
    self._released.set()
    if self._generation:
      self._thread.join()
      self._blob().delete(if_generation_match=self._generation, **self._patient)
      self._generation = 0

  def _read(self) -> tuple[dict, int]:
    """Returns what it says and its generation; {} and 0 where there is none."""
    from google.api_core.exceptions import NotFound

    blob = self._blob()  # anew: one that has been read or written asks for that generation alone
    try:
      return json.loads(blob.download_as_bytes(**self._patient)), int(blob.generation)
    except NotFound:
      return {}, 0

  def _free(self) -> int:
    """Returns the generation that may be replaced: 0, or of a holder that is gone."""
    found, seen = self._read()
    is_here = lock.is_here(found) and found['boot'] == boot()
    if not seen or is_here and not runs(found['process']):
      return seen
    warn(f'--workdir={self._path} was held by {lock.named(found)}; waiting to see if it still is')
    end = time.monotonic() + LOOK_SECONDS
    while time.monotonic() < end:
      time.sleep(REFRESH_SECONDS / 5)
      found, generation = self._read()
      if generation != seen:
        if generation:
          raise lock.in_use(self._path, found)
        return 0
    return seen

  def _write(self, generation: int) -> bool:
    """Writes it, if it is of that generation still; whether this process holds it now."""
    from google.api_core.exceptions import PreconditionFailed

    text, blob = json_text.dumps({**self._text, 'refreshed': lock.now()}), self._blob()
    try:
      blob.upload_from_string(text, if_generation_match=generation, **self._patient)
      self._generation = int(blob.generation)
    except PreconditionFailed:
      found, generation = self._read()
      if not found.items() >= self._text.items():
        return False
      self._generation = generation  # ours: only the answer was lost
    return True

  def _refresh(self) -> None:
    while not self._released.wait(REFRESH_SECONDS):
      with contextlib.suppress(Exception):  # the bucket does not answer: the next time, perhaps
        if not self._write(self._generation):
          self.is_lost = True
          warn(f'--workdir={self._path} was taken over by another process; this one ends')
          return preemption.leave(1)


def boot() -> str:
  """Returns what tells this start of this machine from others that have its name."""
  return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text('ascii').strip()


def is_lost(error: Exception) -> bool:
  """Returns whether an upload in parts cannot go on: it timed out, or nobody knows it any more."""
  from google.api_core.exceptions import RetryError

  return isinstance(error, RetryError) or getattr(error, 'code', None) in (404, 410)


def said(error: Exception) -> str:
  """Returns in a few words what a server or a library has said."""
  listed = [part['message'] for part in getattr(error, 'errors', ()) if 'message' in part]
  return (listed or str(error).splitlines() or [type(error).__name__])[0][:200]


def _state(file: pathlib.Path) -> tuple[int, int]:
  state = file.stat()
  return state.st_size, state.st_mtime_ns
