"""What a corpus is: documents, each a name and its text, that can be read repeatedly."""

import array
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ID_BYTES = 4
READ_WHOLE_BYTES = 256 << 20  # hashed in 0.2 s


@dataclasses.dataclass(frozen=True)
class Document:
  """One text, or its token ids if another program made them.

  Attributes:
    name: for messages.
    blocks: gives the text in blocks, or arrays of ids; starts again each time.
    held_out: whether it is of `data.validation_files`.
    file: what it was read from, with its neighbours.
  """

  name: str
  blocks: Callable[[], Iterator[Any]]
  held_out: bool = False
  file: str = ''

  @property
  def text(self) -> str:
    return ''.join(self.blocks())

  @classmethod
  def of(cls, name: str, text: str, file: str = '') -> 'Document':
    return cls(name, lambda: iter((text,)), file=file)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A sequence of documents.

  Attributes:
    name: the value of `data.corpus`.
    fingerprint: JSON-able; it changes when the corpus does, and is cheap to make.
    documents: yields the documents, always in the same order, none of them blank.
    holds_ids: their blocks are tokens, not text.
  """

  name: str
  fingerprint: Any
  documents: Callable[[], Iterator[Document]]
  holds_ids: bool = False


@dataclasses.dataclass(frozen=True)
class Listing:
  """Digests and sizes of every document of a corpus, in order.

  Attributes:
    bits_N: the first 64 bits of each one's sha256.
    sizes_N: their UTF-8 bytes, or ID_BYTES for each of their ids.
    held_out_N: which are of `data.validation_files`.
    file_N: indices into `files`.
    files: what they were read from.
  """

  bits_N: np.ndarray
  sizes_N: np.ndarray
  held_out_N: np.ndarray
  file_N: np.ndarray
  files: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Survey:
  """The result of reading a whole corpus once.

  Attributes:
    documents, bytes: their number, and their sizes together.
    sha256: of the documents' own sha256, in order.
    lowest, highest: the extremes of the documents' 64-bit hashes, for the split by document.
    listing: of the documents; 21 bytes each.
  """

  documents: int
  bytes: int
  sha256: str
  lowest: int
  highest: int
  listing: Listing = dataclasses.field(compare=False)


def fingerprint(paths: Sequence[Path]) -> list[Any]:
  """Returns a value that changes when the files change, without decoding them.

  Up to 256 MiB in all it is their names and contents, so a copy elsewhere counts as the same; of
  more it is what `make` would go by: full paths, sizes and modification times.
  """
  states = [path.stat() for path in paths]
  if sum(state.st_size for state in states) > READ_WHOLE_BYTES:
    return [
      [str(path.absolute()), state.st_size, state.st_mtime_ns]
      for path, state in zip(paths, states, strict=True)
    ]
  return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths]


def content_hash(document: Document) -> tuple[bytes, int]:
  """Returns (sha256 of the document's UTF-8 bytes, their number); ids count as int32."""
  digest, length = hashlib.sha256(), 0
  for block in document.blocks():
    encoded = as_bytes(block)
    digest.update(encoded)
    length += len(encoded)
  return digest.digest(), length


def as_bytes(block: str | np.ndarray) -> bytes:
  return block.encode('utf-8') if isinstance(block, str) else block.astype('<i4').tobytes()


def leading_bits(digest: bytes) -> int:
  """Returns the first 64 bits of a sha256."""
  return int.from_bytes(digest[:8], 'big')


def survey(corpus: Corpus) -> Survey:
  """Reads a corpus once.

  Raises:
    ValueError: it holds no text, or a file of it cannot be read.
  """
  total, files = hashlib.sha256(), []
  bits, sizes, held_out, file = (array.array(kind) for kind in 'QQBI')
  for document in corpus.documents():
    digest, size = content_hash(document)
    total.update(digest)
    source = document.file or document.name
    if not files or files[-1] != source:
      files.append(source)
    bits.append(leading_bits(digest))
    sizes.append(size)
    held_out.append(document.held_out)
    file.append(len(files) - 1)
  if not files:
    raise ValueError(
      f'data.corpus={corpus.name!r} holds no text; choose other files or another corpus'
    )
  bits_N, sizes_N = np.array(bits, np.uint64), np.array(sizes, np.int64)
  lowest, highest = int(bits_N.min()), int(bits_N.max())
  listing = Listing(bits_N, sizes_N, np.array(held_out, bool), np.array(file, np.uint32), files)
  return Survey(len(bits), int(sizes_N.sum()), total.hexdigest(), lowest, highest, listing)
