"""What a corpus is: documents, each a name and its text, that can be read repeatedly."""

import array
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ID_BYTES = 4
READ_WHOLE_BYTES = 256 << 20  # hashed in 0.2 s
UNIT_BYTES = 1 << 24
_LISTED_AT_ONCE = 1 << 16


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
class Unit:
  """Neighbouring documents of a corpus that are read apart from the others.

  Attributes:
    bytes: of the files that hold them, about; 0 where nobody knows.
    documents: yields them.
  """

  bytes: int
  documents: Callable[[], Iterator[Document]]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A sequence of documents.

  Attributes:
    name: the value of `data.corpus`.
    fingerprint: JSON-able; it changes when the corpus does, and is cheap to make.
    documents: yields the documents, always in the same order, none of them blank.
    holds_ids: their blocks are tokens, not text.
    cut: gives the same documents in order, cut where reading can begin; None where it cannot.
  """

  name: str
  fingerprint: Any
  documents: Callable[[], Iterator[Document]]
  holds_ids: bool = False
  cut: Callable[[], Sequence[Unit]] | None = None

  @functools.cached_property
  def units(self) -> Sequence[Unit]:
    return self.cut() if self.cut is not None else [Unit(0, self.documents)]


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


class Lister:
  """A list of documents in the making; `take` returns those since the last time as arrays."""

  def __init__(self):
    self._begin()

  def _begin(self) -> None:
    self._digests, self._files = bytearray(), []
    self._sizes, self._held_out, self._file = (array.array(kind) for kind in 'QBI')

  def __len__(self) -> int:
    return len(self._sizes)

  def add(self, document: Document, digest: bytes, size: int) -> None:
    source = document.file or document.name
    if not self._files or self._files[-1] != source:
      self._files.append(source)
    self._digests += digest
    self._sizes.append(size)
    self._held_out.append(document.held_out)
    self._file.append(len(self._files) - 1)

  def take(self) -> dict[str, np.ndarray]:
    taken = {
      'digests_Nx32': np.frombuffer(self._digests, np.uint8).reshape(-1, 32),
      'sizes_N': np.array(self._sizes, np.int64),
      'held_out_N': np.array(self._held_out, bool),
      'file_N': np.array(self._file, np.uint32),
      'files': np.frombuffer(json.dumps(self._files).encode(), np.uint8),
    }
    self._begin()
    return taken


def survey(corpus: Corpus) -> Survey:
  """Reads a corpus once.

  Raises:
    ValueError: it holds no text, or a file of it cannot be read.
  """

  def listed() -> Iterator[dict[str, np.ndarray]]:
    lister = Lister()
    for document in corpus.documents():
      lister.add(document, *content_hash(document))
      if len(lister) == _LISTED_AT_ONCE:
        yield lister.take()
    yield lister.take()

  return surveyed(corpus.name, listed())


def surveyed(name: str, listed: Iterable[dict[str, np.ndarray]]) -> Survey:
  """Returns the survey of a corpus whose documents were noted.

  Args:
    name: of the corpus.
    listed: what `Lister.take` gave, in order.

  Raises:
    ValueError: there is no document.
  """
  total, files = hashlib.sha256(), []
  bits, sizes, held_out, file = [], [], [], []
  for some in listed:
    total.update(some['digests_Nx32'].data)
    bits.append(some['digests_Nx32'][:, :8].copy().view('>u8')[:, 0].astype(np.uint64))
    sizes.append(some['sizes_N'])
    held_out.append(some['held_out_N'])
    names = json.loads(some['files'].tobytes())
    goes_on = bool(names) and files[-1:] == names[:1]
    file.append((some['file_N'] + np.uint32(len(files) - goes_on)).astype(np.uint32))
    files += names[goes_on:]
  if not files:
    raise ValueError(f'data.corpus={name!r} holds no text; choose other files or another corpus')
  bits_N, sizes_N, held_out_N, file_N = map(np.concatenate, (bits, sizes, held_out, file))
  listing = Listing(bits_N, sizes_N, held_out_N, file_N, files)
  lowest, highest = int(bits_N.min()), int(bits_N.max())
  return Survey(len(bits_N), int(sizes_N.sum()), total.hexdigest(), lowest, highest, listing)
