"""Reads a user's files as documents: whole texts, lines of JSON, tables.

  .txt .md            one document
  .jsonl .json        one a line
  .csv .tsv           one a row; the first row names the columns
  .parquet .arrow     one a row; the .arrow files of a saved `datasets` folder too

All but the last two may be compressed (.gz, .zst). Text is decoded strictly: a byte that is not
UTF-8 stops the reading with the file and the offset. Nothing is translated or stripped, so the
bytes of a document are the bytes of its file.
"""

import codecs
import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from absl import logging

from crt_jax import json_text, storage
from crt_jax.data.documents import Document
from crt_jax.schema.fields import near

BLOCK_BYTES = 1 << 20
BUFFER_BYTES = 1 << 18  # in which lines are looked for
KINDS = ('.txt', '.md', '.jsonl', '.json', '.csv', '.tsv')
COMPRESSED = ('.gz', '.zst')
SUFFIXES = (
  *KINDS,
  *(kind + end for kind in KINDS for end in COMPRESSED),
  '.parquet',
  '.arrow',
)
FEW = 1000  # records, of which a share means little

_SURROGATE = re.compile('[\ud800-\udfff]')


class Malformed(ValueError):
  """A record without the expected text; names file and place."""


class Skipping:
  """Leaves malformed records out, up to a share of all (`data.skip_malformed`); 0 means none.

  Of a part of a corpus that was counted as a whole, the share may be 1 and is said already.
  """

  def __init__(self, share: float, is_said: bool = False):
    self._share, self._is_said = share, is_said

  def kept(self, records: Iterable[Document | Malformed]) -> Iterator[Document]:
    """Yields the valid documents; prints how many records were left out.

    Raises:
      Malformed: there are more than the share.
    """
    seen, left_out, first = 0, 0, None
    for record in records:
      seen += 1
      if isinstance(record, Document):
        yield record
        continue
      left_out, first = left_out + 1, first or record
      self._check(left_out, max(seen, FEW), first)
    self._check(left_out, seen, first)
    if left_out and not self._is_said:  # a corpus is read several times
      self._is_said = True
      logging.warning('%d of %d records are left out as malformed; %s', left_out, seen, first)

  def _check(self, left_out: int, of: int, first: Malformed | None) -> None:
    if first is None or left_out <= self._share * of:
      return
    if self._share == 0:
      raise Malformed(f'{first}; or leave such records out: data.skip_malformed=0.01')
    raise Malformed(
      f'{left_out} malformed records, more than data.skip_malformed={self._share} of the text; '
      f'{first}'
    )


def read_files(
  paths: Iterable[Path], text_field: str, skipping: Skipping | None = None
) -> Iterator[Document]:
  """Returns the documents of some files, in order, without blank ones.

  Raises:
    ValueError: an undecodable byte, a file that is cut short, no `text_field`, a malformed record
      that `skipping` does not leave out; names file and place.
  """
  skipping = skipping or Skipping(0.0)
  return skipping.kept(record for path in paths for record in _records(path, text_field))


def _records(path: Path, text_field: str) -> Iterator[Document | Malformed]:
  name = path.name
  for end in COMPRESSED:
    name = name.removesuffix(end)
  kind = name.rpartition('.')[2]
  if kind in ('txt', 'md'):
    yield from _whole(path)
    return
  for place, text in READERS[kind](path, text_field):
    if isinstance(text, Malformed):
      yield text
    elif not isinstance(text, str):
      yield Malformed(
        f'{place}: field {text_field!r} holds {type(text).__name__}; set data.text_field'
      )
    elif not text.isascii() and _SURROGATE.search(text):
      yield Malformed(f'{place}: field {text_field!r} holds half a surrogate pair; repair it')
    elif text and not text.isspace():
      yield Document.of(place, text, str(path))


def _whole(path: Path) -> Iterator[Document]:
  blocks = decoded_blocks(path)
  first, second = next(blocks, ''), next(blocks, None)
  if second is not None:  # a large file is never in memory as a whole
    yield Document(str(path), lambda: decoded_blocks(path), file=str(path))
  elif first.strip():
    yield Document.of(str(path), first, str(path))


def decoded_blocks(path: Path) -> Iterator[str]:
  """Yields the text of a file in blocks of about 1 MiB, cut between characters."""
  decoder = codecs.getincrementaldecoder('utf-8')()
  offset = 0
  with _open(path) as file:
    while True:
      with _naming(path):
        block = file.read(BLOCK_BYTES)
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


def _jsonl(path: Path, text_field: str) -> Iterator[tuple[str, Any]]:
  for number, line in enumerate(_lines(path), start=1):
    place = f'{path}, line {number}'
    if isinstance(line, Malformed):
      yield place, line
    elif line.strip():
      try:
        record = json_text.parse(line)
      except ValueError as error:
        yield place, Malformed(f'{place}: not JSON ({error}); each line is one object')
        continue
      if isinstance(record, dict) and text_field in record:
        yield place, record[text_field]
      else:
        yield place, _no_field(place, text_field, record if isinstance(record, dict) else ())


def _csv(path: Path, text_field: str) -> Iterator[tuple[str, Any]]:
  separator = '\t' if '.tsv' in path.suffixes else ','
  csv.field_size_limit(sys.maxsize)
  rows = csv.reader(_text_lines(path), delimiter=separator, strict=True)
  try:
    columns = next(rows, [])
    if text_field not in columns:
      raise _no_field(str(path), text_field, columns)
    column = columns.index(text_field)
    for row in rows:
      place = f'{path}, line {rows.line_num}'
      if len(row) == len(columns):
        yield place, row[column]
      elif row:  # not a blank line
        yield place, Malformed(f'{place}: {len(row)} columns, not {len(columns)} as the first row')
  except csv.Error as error:  # where the next row begins is not known
    raise ValueError(f'{path}, line {rows.line_num}: {error}; repair the file') from None


def _parquet(path: Path, text_field: str) -> Iterator[tuple[str, Any]]:
  from pyarrow import parquet  # 0.3 s to import

  with _naming(path):
    file = parquet.ParquetFile(path)
  if text_field not in file.schema_arrow.names:
    raise _no_field(str(path), text_field, file.schema_arrow.names)
  return _rows(path, file.iter_batches(columns=[text_field]), text_field)


def _arrow(path: Path, text_field: str) -> Iterator[tuple[str, Any]]:
  import pyarrow

  with _naming(path):
    source = pyarrow.memory_map(str(path))
    is_file = source.read(6) == b'ARROW1'
    source.seek(0)
    if is_file:
      reader = pyarrow.ipc.open_file(source)
      batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
      reader = batches = pyarrow.ipc.open_stream(source)
  if text_field not in reader.schema.names:
    raise _no_field(str(path), text_field, reader.schema.names)
  return _rows(path, batches, text_field)


def _rows(path: Path, batches: Iterable, text_field: str) -> Iterator[tuple[str, Any]]:
  number, batches = 0, iter(batches)
  while True:
    with _naming(path):
      batch = next(batches, None)
    if batch is None:
      return
    for value in batch.column(text_field):
      number += 1
      place = f'{path}, row {number}'
      try:
        yield place, value.as_py()
      except UnicodeDecodeError:
        yield place, Malformed(f'{place}: field {text_field!r} is not UTF-8; repair it')


READERS = {
  'jsonl': _jsonl,
  'json': _jsonl,
  'csv': _csv,
  'tsv': _csv,
  'parquet': _parquet,
  'arrow': _arrow,
}


def _no_field(place: str, text_field: str, fields: Iterable[str]) -> Malformed:
  fields = list(fields)
  return Malformed(
    f'{place}: no field {text_field!r}{near(text_field, fields)} '
    f'(has {", ".join(fields) or "none"}); set data.text_field'
  )


def _open(path: Path) -> io.BufferedIOBase:
  try:
    if path.name.endswith('.gz'):
      return gzip.open(path)
    if path.name.endswith('.zst'):
      import pyarrow

      return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), 'zstd'))
    return io.BufferedReader(path.open('rb', buffering=0), BUFFER_BYTES)
  except OSError as error:
    storage.refuse_passing(path, error)
    raise ValueError(f'{path}: cannot be read ({error.strerror or error})') from None


def _lines(path: Path) -> Iterator[str | Malformed]:
  """Yields the lines of a file with their ends, which are line feeds as in JSON lines."""
  offset = 0
  with _open(path) as file:
    while True:
      with _naming(path):
        line = file.readline()
      if not line:
        return
      try:
        yield line.decode('utf-8')
      except UnicodeDecodeError as error:
        yield _undecodable(path, offset + error.start)
      offset += len(line)


def _text_lines(path: Path) -> Iterator[str]:
  for line in _lines(path):
    if isinstance(line, Malformed):  # a row may go on over lines, so none can be left out alone
      raise line
    yield line


class _naming:
  """Raises a broken file or a failing disk as one line that names the file."""

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
    # Arrow's own errors are OSError and ValueError.
    if isinstance(error, OSError):
      storage.refuse_passing(self.path, error)
    if isinstance(error, EOFError | OSError | zlib.error | ValueError):
      what = str(error).partition('\n')[0]
      raise ValueError(f'{self.path}: cannot be read ({what}); is it complete?') from None


def _undecodable(path: Path, offset: int) -> Malformed:
  where = 'of the unpacked text ' if path.name.endswith(COMPRESSED) else ''
  return Malformed(
    f'{path}: byte {offset} {where}is not UTF-8; convert the file, for example '
    'with `iconv -f latin1 -t utf-8`'
  )
