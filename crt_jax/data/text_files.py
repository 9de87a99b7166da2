"""Reading .txt and .jsonl files, plain or .gz, as documents.

Text is decoded strictly: a byte that is not UTF-8 stops the reading with the file and the offset.
Nothing is translated or stripped, so the bytes of a document are the bytes of its file.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from crt_jax import json_text
from crt_jax.data.documents import Document
from crt_jax.schema.fields import near

BLOCK_BYTES = 1 << 20
SUFFIXES = ('.txt', '.jsonl', '.txt.gz', '.jsonl.gz')


def read_file(path: Path, text_field: str) -> Iterator[Document]:
  """The documents of one file: a .txt is one, a .jsonl has one a line; blank ones are left out.

  Raises:
    ValueError: an undecodable byte, a broken gzip stream, a line that is not JSON or has no
      `text_field`; names file and place.
  """
  kind = path.name.removesuffix('.gz').rpartition('.')[2]
  if kind == 'jsonl':
    yield from _jsonl(path, text_field)
    return
  blocks = decoded_blocks(path)
  first, second = next(blocks, ''), next(blocks, None)
  if second is not None:  # a large file is never held in memory as a whole
    yield Document(str(path), lambda: decoded_blocks(path), file=str(path))
  elif first.strip():
    yield Document.of(str(path), first, str(path))


def decoded_blocks(path: Path) -> Iterator[str]:
  """The text of a file in blocks of about 1 MiB, cut between characters."""
  decoder = codecs.getincrementaldecoder('utf-8')()
  offset = 0
  with _open(path) as file:
    while True:
      block = _read(file, path)
      pending = len(decoder.getstate()[0])
      try:
        text = decoder.decode(block, final=not block)
      except UnicodeDecodeError as error:
        raise _undecodable(path, offset - pending + error.start) from None
      offset += len(block)
      if text:
        yield text
      if not block:
        return


def _jsonl(path: Path, text_field: str) -> Iterator[Document]:
  offset = 0
  with _open(path) as file:
    for number, line in enumerate(_lines(file, path), start=1):
      place = f'{path}, line {number}'
      try:
        text = line.decode('utf-8')
        record = json_text.parse(text) if text.strip() else None
      except UnicodeDecodeError as error:
        raise _undecodable(path, offset + error.start) from None
      except ValueError as error:
        raise ValueError(f'{place}: not JSON ({error}); each line is one object') from None
      offset += len(line)
      if record is None:
        continue
      if not isinstance(record, dict) or text_field not in record:
        fields = list(record) if isinstance(record, dict) else []
        raise ValueError(
          f'{place}: no field {text_field!r}{near(text_field, fields)} '
          f'(has {", ".join(fields) or "none"}); set data.text_field'
        )
      text = record[text_field]
      if not isinstance(text, str):
        raise ValueError(
          f'{place}: field {text_field!r} holds {type(text).__name__}; set data.text_field'
        )
      if any('\ud800' <= character <= '\udfff' for character in text):
        raise ValueError(f'{place}: field {text_field!r} holds half a surrogate pair; repair it')
      if text.strip():
        yield Document.of(place, text, str(path))


def _open(path: Path) -> io.BufferedIOBase:
  try:
    return gzip.open(path) if path.name.endswith('.gz') else path.open('rb')
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from None


def _read(file: io.BufferedIOBase, path: Path) -> bytes:
  with _naming(path):
    return file.read(BLOCK_BYTES)


def _lines(file: io.BufferedIOBase, path: Path) -> Iterator[bytes]:
  while True:
    with _naming(path):
      line = file.readline()
    if not line:
      return
    yield line


class _naming:
  """Turns a broken gzip stream or a failing disk into one line that names the file."""

  def __init__(self, path: Path):
    self.path = path

  def __enter__(self) -> None:
    return None

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if isinstance(error, EOFError | OSError | zlib.error):
      raise ValueError(f'{self.path}: cannot be read ({error}); is it complete?') from None


def _undecodable(path: Path, offset: int) -> ValueError:
  where = 'of the unpacked text ' if path.name.endswith('.gz') else ''
  return ValueError(
    f'{path}: byte {offset} {where}is not UTF-8; convert the file, for example '
    'with `iconv -f latin1 -t utf-8`'
  )
