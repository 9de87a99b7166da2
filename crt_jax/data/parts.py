"""A corpus as numbered parts, which several processes tokenise together, on one host or on many.

  tokenizer/             what they all encode with
  UNIT/PART.bin          the tokens of about PART_CHARACTERS of the text of a unit (documents.Unit)
  UNIT/PART.npz          what is in them, with a checksum; written last
  UNIT/PART-last.npz     the same of the last part of a unit
  claims                 a file of which each process locks a byte for what it makes

Where a part begins depends on the text alone, so it does not matter how many processes there are,
and how often they die: the system gives back the locks of the dead, and a part that is there is not
made again. Each process takes units that nobody has; then it helps with those of others, reading
over the parts that are made already. On a file system without locks work may be done twice, with
the same outcome.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import random
import socket
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from crt_jax import storage
from crt_jax.data.documents import Corpus, Document, Lister, as_bytes
from crt_jax.data.token_files import in_vocabulary, token_dtype
from crt_jax.data.tokenizers import Tokenizer

FORMAT = 1  # another one for each change of what is in a part, and of where it begins
PART_CHARACTERS = 1 << 24
BATCH_CHARACTERS = 1 << 21  # tokenised at once: enough for all cores, little memory
WAIT_SECONDS = 0.2
_LAST = '-last'
_PLACES = 32  # bits of the number of a part in the place of its claim

Progress = Callable[[int, int], None]  # bytes that are done, all of them; both about


@dataclasses.dataclass(frozen=True)
class Part:
  """A part that was made.

  Attributes:
    path: of its record.
    record: of the documents that end in it what Lister.take gives, and more, as below.
  """

  path: Path
  record: dict[str, np.ndarray]

  @classmethod
  def read(cls, path: Path) -> 'Part':
    try:
      with np.load(path) as record:
        return cls(path, dict(record))
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
      raise _damaged(path) from None

  @property
  def text_bytes_N(self) -> np.ndarray:
    """UTF-8 bytes of the text of each document that ends here."""
    return self.record['text_bytes_N']

  @property
  def counts_S(self) -> np.ndarray:
    """How many tokens are here of each document that ends here, and of one that goes on."""
    return self.record['counts_S']

  @property
  def tokens(self) -> int:
    return int(self.counts_S.sum())

  @staticmethod
  def tokens_of(record: Path) -> Path:
    return record.with_name(record.stem.removesuffix(_LAST) + '.bin')

  def ids(self, dtype: np.dtype) -> np.ndarray:
    """Returns the tokens, mapped into memory, not read into it."""
    path = self.tokens_of(self.path)
    ids = np.asarray(np.memmap(path, dtype, 'r')) if path.stat().st_size else np.zeros(0, dtype)
    if zlib.crc32(ids.data) != self.record['crc32'] or ids.size != self.tokens:
      raise _damaged(self.path)
    return ids


def _damaged(path: Path) -> storage.OutOfReach:
  path.unlink(missing_ok=True)
  return storage.OutOfReach(
    f'{path} or the .bin beside it was not what was written, and is removed; run the same command '
    'again'
  )


class Parts:
  """The parts of a corpus in a folder."""

  def __init__(self, folder: Path, corpus: Corpus, tokenizer: Tokenizer, separator: str):
    self.folder, self.corpus, self.tokenizer = folder, corpus, tokenizer
    self.dtype = token_dtype(tokenizer.vocab_size)
    self.before = np.array([tokenizer.bos] if separator == 'bos_eos' else [], self.dtype)
    self.after = np.array([] if separator == 'none' else [tokenizer.eos], self.dtype)
    self._whole: dict[int, list[Path]] = {}
    self._total = sum(unit.bytes for unit in corpus.units)
    self._done, self._said = 0, 0

  def __iter__(self) -> Iterator[Part]:
    """Yields all parts in order, when they are made."""
    for unit in range(len(self.corpus.units)):
      yield from map(Part.read, self._made(unit))

  def make(self, progress: Progress, is_over: Callable[[], bool]) -> None:
    """Makes the missing parts, together with other processes that do the same.

    Returns when all are there, or when `is_over` says so.
    """
    units = list(range(len(self.corpus.units)))
    start = random.randrange(len(units))  # where there are no locks, they seldom meet
    units = units[start:] + units[:start]
    helps, others = False, {}  # unit -> the parts that others were making when it was last read
    with _Claims(self.folder / 'claims') as claims, ThreadPoolExecutor(2) as encoder:
      while missing := [unit for unit in units if not self._made(unit)]:
        is_waiting = helps
        for unit in missing:
          if is_over():
            return
          with claims.held(unit) as is_mine:
            if self._made(unit) or not (is_mine or helps and self._has_free(unit, others, claims)):
              continue
            reading = _Reading(self, unit, claims, encoder, self._progress(progress))
            others[unit], is_waiting = reading.make_parts(is_over), False
        if is_waiting:
          time.sleep(WAIT_SECONDS)
        helps = True

  def record(self, unit: int, number: int, is_last: bool) -> Path:
    return self.folder / f'{unit:06d}' / f'{number:06d}{_LAST * is_last}.npz'

  def is_made(self, unit: int, number: int) -> bool:
    return any(self.record(unit, number, is_last).exists() for is_last in (False, True))

  def _made(self, unit: int) -> list[Path]:
    """Returns the records of a unit whose parts are all there, else []."""
    if unit not in self._whole:
      found = sorted(self.record(unit, 0, False).parent.glob('*.npz'))
      if not found or found[-1] != self.record(unit, len(found) - 1, True):
        return []
      self._whole[unit] = found
      self._done += self.corpus.units[unit].bytes
    return self._whole[unit]

  def _has_free(self, unit: int, others: dict[int, set[int]], claims: '_Claims') -> bool:
    """Returns whether there may be a part of a unit that is missing and that nobody makes."""
    if unit not in others:
      return True
    for number in others[unit]:
      with claims.held(unit, number) as is_free:
        if is_free and not self.is_made(unit, number):
          return True
    return False

  def _progress(self, progress: Progress) -> Callable[[int], None]:
    """Returns what is told the characters read of a unit; `progress` is told of all units."""
    done = self._done

    def said(read: int) -> None:
      self._said = max(self._said, min(done + read, self._total))
      progress(self._said, self._total)

    return said


class _Reading:
  """One reading of a unit, in which the parts that nobody else makes are made."""

  def __init__(
    self,
    parts: Parts,
    unit: int,
    claims: '_Claims',
    encoder: ThreadPoolExecutor,
    progress: Callable[[int], None],
  ):
    self._parts, self._unit, self._claims, self._encoder = parts, unit, claims, encoder
    self._progress = progress
    self._read = 0  # characters
    self._number, self._begun = 0, 0  # the part that it is in, and where that began

  def make_parts(self, is_over: Callable[[], bool]) -> set[int]:
    """Returns the numbers of the parts that others are making."""
    others = set()
    with contextlib.ExitStack() as claimed:
      part = self._begin(claimed, others)
      for item in self._items():
        if self._number != part.number:
          part.close(is_last=False)
          claimed.close()
          if is_over():
            return others
          part = self._begin(claimed, others)
        if part.add(item):
          self._progress(self._read)
      part.close(is_last=True)
    return others

  def _begin(self, claimed: contextlib.ExitStack, others: set[int]) -> '_NewPart | _NoPart':
    """Returns the part that reading has come to; made here if it is missing and free."""
    place = self._unit, self._number
    if not self._parts.is_made(*place):
      if not claimed.enter_context(self._claims.held(*place)):
        others.add(self._number)
      elif not self._parts.is_made(*place):  # meanwhile
        return _NewPart(self._parts, *place, self._encoder)
    return _NoPart(self._number)

  def _items(self) -> Iterator['str | np.ndarray | _End | None']:
    """Yields of each document None, its text or ids in pieces, and its end."""
    tokenizer, holds_ids = self._parts.tokenizer, self._parts.corpus.holds_ids
    for document in self._parts.corpus.units[self._unit].documents():
      hashed = _Hashed(document)
      self._go_on()
      yield None
      text_bytes = 0
      for text in hashed.blocks() if holds_ids else tokenizer.pieces(hashed.blocks()):
        self._go_on()
        yield text
        self._read += len(text)
        if isinstance(text, np.ndarray):
          text_bytes += tokenizer.count_bytes(text)
      yield _End(document, *hashed.result(), text_bytes if holds_ids else hashed.bytes)

  def _go_on(self) -> None:
    """Begins the next part where this one is large enough."""
    if self._read - self._begun >= PART_CHARACTERS:
      self._number, self._begun = self._number + 1, self._read


class _Hashed:
  """A document that is hashed as its blocks are read."""

  def __init__(self, document: Document):
    self._document, self._sha256, self.bytes = document, hashlib.sha256(), 0

  def blocks(self) -> Iterator[Any]:
    for block in self._document.blocks():
      raw = as_bytes(block)
      self._sha256.update(raw)
      self.bytes += len(raw)
      yield block

  def result(self) -> tuple[bytes, int]:
    return self._sha256.digest(), self.bytes


class _End(NamedTuple):
  """The end of a document, as Lister.add takes it; and the UTF-8 bytes of its text."""

  document: Document
  digest: bytes
  size: int
  text_bytes: int


class _NoPart(NamedTuple):
  """A part that is made already, or by another process."""

  number: int

  def add(self, item: Any) -> bool:
    del item
    return False

  def close(self, is_last: bool) -> None:
    pass


class _NewPart:
  """A part in the making: read in one thread, tokenised and written in two others."""

  def __init__(self, parts: Parts, unit: int, number: int, encoder: ThreadPoolExecutor):
    self._parts, self._unit, self.number, self._encoder = parts, unit, number, encoder
    folder = parts.record(unit, number, False).parent
    folder.mkdir(exist_ok=True)
    self._scratch = folder / f'{number:06d}.{socket.gethostname()}-{os.getpid()}'
    self._file, self._crc32 = self._scratch.open('wb'), 0
    self._lister, self._text_bytes = Lister(), []
    self._counts = np.zeros(0, np.int64)
    self._is_open = False  # whether a document has begun here that has not ended
    self._batch = _Batch()
    self._documents = 0  # with tokens here
    self._last_but_one: Future = encoder.submit(int)
    self._last: Future = self._last_but_one  # of what is being tokenised and written

  def add(self, item: 'str | np.ndarray | _End | None') -> bool:
    """Takes what _Reading gives; returns whether a batch of it went to be tokenised."""
    if not self._is_open:
      self._documents, self._is_open = self._documents + 1, True
    if item is None:
      self._batch.add(self._parts.before, self._documents)
    elif isinstance(item, _End):
      self._batch.add(self._parts.after, self._documents)
      self._lister.add(item.document, item.digest, item.size)
      self._text_bytes.append(item.text_bytes)
      self._is_open = False
    else:
      self._batch.add(item, self._documents)
      if self._batch.characters >= BATCH_CHARACTERS:
        self._flush()
        return True
    return False

  def _flush(self) -> None:
    self._last_but_one.result()
    self._last_but_one = self._last
    self._last = self._encoder.submit(self._write, self._last, self._batch, self._documents)
    self._batch = _Batch()

  def _write(self, previous: Future, batch: '_Batch', documents: int) -> None:
    ids, counts = batch.encoded(self._parts.tokenizer, documents)
    previous.result()
    self._counts = np.pad(self._counts, (0, documents - len(self._counts))) + counts
    ids = in_vocabulary(ids, self._parts.tokenizer.vocab_size)
    self._file.write(ids.data)
    self._crc32 = zlib.crc32(ids.data, self._crc32)

  def close(self, is_last: bool) -> None:
    """Puts the part where it belongs."""
    self._flush()
    self._last.result()
    self._file.close()
    record = self._parts.record(self._unit, self.number, is_last)
    self._scratch.rename(Part.tokens_of(record))
    values = self._lister.take() | {
      'text_bytes_N': np.array(self._text_bytes, np.int64),
      'counts_S': self._counts,
      'crc32': np.array(self._crc32),
    }
    with self._scratch.open('wb') as file:
      np.savez(file, allow_pickle=False, **values)
    self._scratch.rename(record)


class _Batch:
  """Text and ids in order, and the documents of which they are."""

  def __init__(self):
    self.items, self.owners, self.characters = [], [], 0

  def add(self, item: str | np.ndarray, owner: int) -> None:
    if len(item):
      self.items.append(item)
      self.owners.append(owner)
      self.characters += len(item)

  def encoded(self, tokenizer: Tokenizer, owners: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all as ids, and how many each of the owners 1, 2, ... has."""
    texts = iter(tokenizer.encode_batch([item for item in self.items if isinstance(item, str)]))
    ids = [next(texts) if isinstance(item, str) else item for item in self.items]
    lengths = [len(some) for some in ids]
    counts = np.bincount(np.array(self.owners, np.int64), lengths, owners + 1)[1:]
    return np.concatenate([np.zeros(0, np.uint8), *ids]), counts.astype(np.int64)


class _Claims:
  """Locks on the bytes of a file: what this process makes, or reads first."""

  def __init__(self, path: Path):
    self._file = path.open('ab')

  def __enter__(self) -> '_Claims':
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()

  @contextlib.contextmanager
  def held(self, unit: int, number: int = -1) -> Iterator[bool]:
    """Yields whether a part, or a unit as a whole, could be locked for this context."""
    place = (unit << _PLACES) + number + 1
    try:
      fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError as error:
      if error.errno in (errno.EACCES, errno.EAGAIN):
        yield False
        return
      if error.errno not in storage.NO_LOCKS:
        raise
      logging.log_first_n(
        logging.WARNING, '%s: no locks here; work may be done twice', 1, self._file.name
      )
      yield True
      return
    try:
      yield True
    finally:
      fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)
