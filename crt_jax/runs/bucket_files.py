"""The files that Orbax writes to a bucket beside its arrays, by way of gcsfs.

gcsfs sends a request again whose connection broke, though the server may have done it: the last
part of an upload is then unknown, and what was to be deleted is gone, which ended the run. Here
both may be sent any number of times. TensorStore, which writes the arrays, does so by itself.
"""

import contextlib
import functools
import io
from typing import Any


@functools.cache
def register() -> None:
  """Makes gs:// of fsspec, and so of etils and Orbax, files that may be repeated.

  They are those of gcsfs's core: its own choice looks for hierarchical buckets, and that asks for
  rights that nobody needs here.
  """
  import fsspec
  from gcsfs.core import GCSFileSystem  # an extra

  class BucketFiles(GCSFileSystem):
    def _open(self, path: str, mode: str = 'rb', **options: Any) -> Any:
      return Upload(self, path) if mode == 'wb' else super()._open(path, mode, **options)

    def rm(self, path: str, **options: Any) -> None:
      with contextlib.suppress(FileNotFoundError):
        super().rm(path, **options)

  for scheme in BucketFiles.protocol:
    fsspec.register_implementation(scheme, BucketFiles, clobber=True)


class Upload(io.BytesIO):
  """A file that is uploaded in one request when it is closed."""

  def __init__(self, files: Any, path: str):
    super().__init__()
    self._files, self._path = files, path

  def close(self) -> None:
    data = None if self.closed else self.getvalue()
    super().close()
    if data is not None:
      self._files.pipe_file(self._path, data)
