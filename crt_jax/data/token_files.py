"""Flat token files: little-endian uint16 or uint32, no header, in shards, read memory-mapped.

Each shard carries two checksums, made as it is written: sha256 of the whole, and sha256 of sampled
blocks (the first, the last and evenly between). `verify` reads all of a small set of shards, and of
a large one all sizes and the sampled blocks of SAMPLED_SHARDS, unless asked for all, so that it
takes no longer for more of them. Samples find a file that is cut, replaced or full of holes, but
few single flipped bits: 3 of 40 in a shard of 512 MiB.
"""

import abc
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from crt_jax import storage

SHARD_TOKENS = 1 << 28  # 512 MiB of uint16
READ_WHOLE_BYTES = 256 << 20  # up to this much is verified in full each time; 0.2 s on a laptop
_BLOCK_BYTES = 1 << 20
_SAMPLED_BLOCKS = 32
SAMPLED_SHARDS = 8  # 256 MiB


class DamagedCache(Exception):
  """Packed data that must not be used."""


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a split: its name, tokens, and the checksums of its bytes."""

  file: str
  tokens: int
  sha256: str
  sampled_sha256: str


def token_dtype(vocab_size: int) -> np.dtype:
  """Returns the smallest type that holds every id: uint16 up to 65 536 tokens, else uint32."""
  return np.dtype('<u2' if vocab_size <= 1 << 16 else '<u4')


def in_vocabulary(ids: np.ndarray, vocab_size: int) -> np.ndarray:
  """Returns the ids in the type in which they are written.

  Raises:
    ValueError: an id lies outside the vocabulary.
  """
  if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
    wrong = int(ids.max()) if int(ids.min()) >= 0 else int(ids.min())
    raise ValueError(
      f'token id {wrong} is outside the vocabulary of {vocab_size}; repair the tokenizer'
    )
  return ids.astype(token_dtype(vocab_size), copy=False)


class TokenWriter:
  """Appends tokens to shards in a folder; `close` makes them durable and lists them."""

  def __init__(self, folder: Path, name: str, vocab_size: int, shard_tokens: int = SHARD_TOKENS):
    self.tokens = 0
    self._folder, self._name = folder, name
    self._vocab_size, self._shard_tokens = vocab_size, shard_tokens
    self._hasher = ThreadPoolExecutor(1)  # beside the writing and what is read next
    self._hashing: Future = self._hasher.submit(int)
    self._file: BinaryIO | None = None
    self._digest, self._in_shard = hashlib.sha256(), 0
    self._shards: list[Shard] = []

  def write(self, *runs: np.ndarray) -> None:
    """Appends runs of ids; many at once are hashed at once.

    Raises:
      ValueError: an id lies outside the vocabulary.
    """
    pieces = []
    for run in runs:
      run = np.ascontiguousarray(in_vocabulary(run, self._vocab_size))
      while run.size:
        room = self._shard_tokens - self._in_shard
        pieces.append(run[:room])
        self._in_shard += pieces[-1].size
        run = run[room:]
        if self._in_shard == self._shard_tokens:
          self._end_shard(self._written(pieces))
          pieces = []
    if pieces:
      self._written(pieces)

  def _written(self, pieces: list[np.ndarray]) -> BinaryIO:
    """Writes to the file of the shard, which is opened if there is none, and returns it."""
    if self._file is None:
      self._file, self._digest = (self._folder / self._next()).open('wb'), hashlib.sha256()
    self.tokens += sum(piece.size for piece in pieces)
    self._hashing.result()
    self._hashing = self._hasher.submit(_hash_all, self._digest, pieces)
    self._file.writelines(piece.data for piece in pieces)
    return self._file

  def close(self) -> list[Shard]:
    if self._file is not None:
      self._end_shard(self._file)
    self._hasher.shutdown()
    return self._shards

  def _next(self) -> str:
    return f'{self._name}-{len(self._shards):05d}.bin'

  def _end_shard(self, file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    self._hashing.result()
    name = self._next()
    sampled = sampled_sha256(self._folder / name)
    self._shards.append(Shard(name, self._in_shard, self._digest.hexdigest(), sampled))
    self._file, self._in_shard = None, 0


def _hash_all(digest: 'hashlib._Hash', pieces: list[np.ndarray]) -> None:
  for piece in pieces:
    digest.update(piece.data)


class Tokens(abc.ABC):
  """A sequence of tokens that is read on demand.

  `len(tokens)`, `tokens[i]` and `tokens[a:b]` behave as an array's do.
  """

  dtype: np.dtype

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of tokens."""

  @abc.abstractmethod
  def _read(self, start: int, stop: int) -> np.ndarray:
    """Tokens start..stop-1, where 0 <= start <= stop <= len."""

  def __getitem__(self, index: int | slice) -> np.ndarray:
    if not isinstance(index, slice):
      position = range(len(self))[index]
      return self._read(position, position + 1)[0]
    start, stop, step = index.indices(len(self))
    if step != 1:
      raise ValueError('tokens are read by contiguous slices; apply the step to the result')
    return self._read(start, max(start, stop))

  def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows [starts[r], starts[r] + length) as rows of one array [len(starts), length]."""
    rows = np.empty((len(starts), length), self.dtype)
    for row, start in enumerate(starts.tolist()):
      rows[row] = self._read(start, start + length)
    return rows


class TokenFile(Tokens):
  """The tokens of one split as one sequence, whatever shards they lie in."""

  def __init__(self, paths: Sequence[Path], dtype: np.dtype):
    # np.asarray: slices of a bare view cost a tenth of a memmap's.
    self._shards = [
      np.asarray(storage.retried(path, np.memmap, str(path), dtype, mode='r')) for path in paths
    ]
    self._ends = np.cumsum([shard.size for shard in self._shards], dtype=np.int64)
    self.dtype = np.dtype(dtype)

  def __len__(self) -> int:
    return int(self._ends[-1]) if self._shards else 0

  def _read(self, start: int, stop: int) -> np.ndarray:
    if len(self._shards) == 1:
      return self._shards[0][start:stop]
    first = int(np.searchsorted(self._ends, start, side='right'))
    parts = []
    for shard, end in zip(self._shards[first:], self._ends[first:].tolist(), strict=True):
      begin = end - shard.size
      if begin >= stop:
        break
      parts.append(shard[max(start - begin, 0) : stop - begin])
    if len(parts) == 1:
      return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, self.dtype)


def verify(folder: Path, shards: Sequence[Shard], dtype: np.dtype, whole: bool) -> None:
  """Raises DamagedCache for the first line of `damage`."""
  for line in damage(folder, shards, dtype, whole):
    raise DamagedCache(line)


def damage(folder: Path, shards: Sequence[Shard], dtype: np.dtype, whole: bool) -> Iterator[str]:
  """Yields a line for each shard that is missing or has another size or other bytes.

  Args:
    folder: where they lie.
    shards: as the manifest lists them.
    dtype: type of a token.
    whole: read every byte; else sizes, and sampled blocks of some.

  Raises:
    OutOfReach: a shard cannot be read, which says nothing against it.
  """
  sampled = np.linspace(0, len(shards) - 1, min(len(shards), SAMPLED_SHARDS)).astype(int).tolist()
  for index, shard in enumerate(shards):
    path, reads = folder / shard.file, whole or index in sampled
    found = storage.retried(path, _shard_damage, path, shard, dtype, whole, reads)
    if found:
      yield f'{path} {found}'


def _shard_damage(
  path: Path, shard: Shard, dtype: np.dtype, whole: bool, reads: bool
) -> str | None:
  try:
    size = path.stat().st_size
    if size != shard.tokens * dtype.itemsize:
      return f'has {size} bytes instead of {shard.tokens * dtype.itemsize}'
    if whole:
      with path.open('rb') as file:
        intact = hashlib.file_digest(file, 'sha256').hexdigest() == shard.sha256
    else:
      intact = not reads or sampled_sha256(path) == shard.sampled_sha256
  except storage.MISSING:
    return 'cannot be read (it is missing)'
  return None if intact else 'has other contents than were written'


def sampled_sha256(path: Path) -> str:
  digest, size = hashlib.sha256(), path.stat().st_size
  last = max(size - _BLOCK_BYTES, 0)
  with path.open('rb') as file:
    for block in range(_SAMPLED_BLOCKS):
      file.seek(last * block // (_SAMPLED_BLOCKS - 1))
      digest.update(file.read(_BLOCK_BYTES))
  return digest.hexdigest()
