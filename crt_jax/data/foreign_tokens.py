"""Token files of other programs as documents of ids: `data.corpus='tokens'`.

  .idx    Megatron's index (magic MMIDIDX, version 1) of the .bin beside it, with its documents
  .bin    llm.c's and modded-nanogpt's, 256 int32 in front (magic 20240520: uint16, 20240801:
          uint32); without such a header nanoGPT's, ids alone, of `data.token_dtype`

A .bin without an index is one document.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from crt_jax import storage
from crt_jax.data.documents import Document

SUFFIXES = ('.bin', '.idx')
BLOCK_TOKENS = 1 << 20
HEADER_BYTES = 1024
LLM_C = {20240520: (1, '<u2'), 20240801: (7, '<u4')}  # magic: version, type
MEGATRON = b'MMIDIDX\x00\x00'
MEGATRON_DTYPES = {1: '<u1', 2: '<i1', 3: '<i2', 4: '<i4', 5: '<i8', 8: '<u2'}


def with_partner(path: Path) -> list[Path]:
  """Returns a file and its partner, index or .bin, since both decide what is read."""
  both = (path.with_suffix(suffix) for suffix in SUFFIXES)
  return [part for part in both if part == path or part.exists()]


def read_tokens(paths: Iterable[Path], dtype: str) -> Iterator[Document]:
  """Yields the documents of some files, in order, without empty ones.

  Args:
    dtype: of the ids in a .bin without a header, such as 'uint16'.

  Raises:
    ValueError: a file is cut short, or of a version or type that is not read here; names it.
  """
  for path in paths:
    if path.suffix == '.idx':
      yield from _megatron(path)
    elif not path.with_suffix('.idx').exists():  # else its index is read
      ids = _bin(path, np.dtype(dtype).newbyteorder('<'))
      if ids.size:
        yield Document(str(path), _blocks(ids), file=str(path))


def _bin(path: Path, dtype: np.dtype) -> np.ndarray:
  with path.open('rb') as file:
    magic, version, count = np.frombuffer(file.read(12).ljust(12, b'\0'), '<i4').tolist()
  if magic not in LLM_C:
    return _mapped(path, dtype)
  known, of_header = LLM_C[magic]
  if version != known:
    raise ValueError(f'{path}: version {version} of llm.c tokens; version {known} is read here')
  ids = _mapped(path, np.dtype(of_header), HEADER_BYTES)
  if ids.size != count:
    raise ValueError(f'{path}: holds {ids.size} tokens, its header says {count}; is it complete?')
  return ids


def _megatron(path: Path) -> Iterator[Document]:
  raw = path.read_bytes()
  if not raw.startswith(MEGATRON):
    raise ValueError(f'{path}: no Megatron index (it does not begin with MMIDIDX)')
  try:
    version, code, sequences, ends = struct.unpack_from('<QBQQ', raw, len(MEGATRON))
    at = len(MEGATRON) + struct.calcsize('<QBQQ')
    sizes_S = np.frombuffer(raw, '<i4', sequences, at)
    starts_S = np.frombuffer(raw, '<i8', sequences, at + sizes_S.nbytes)
    ends_D = np.frombuffer(raw, '<i8', ends, at + sizes_S.nbytes + starts_S.nbytes)
  except (struct.error, ValueError):
    raise ValueError(f'{path}: cannot be read (it ends too early); is it complete?') from None
  if version != 1 or code not in MEGATRON_DTYPES:
    raise ValueError(
      f'{path}: version {version}, type {code}; version 1 and the types '
      f'{", ".join(map(str, MEGATRON_DTYPES))} are read here'
    )
  dtype = np.dtype(MEGATRON_DTYPES[code])
  ids = _mapped(path.with_suffix('.bin'), dtype)
  starts_S = starts_S // dtype.itemsize
  if sequences and int((starts_S + sizes_S).max()) > ids.size:
    raise ValueError(
      f'{path.with_suffix(".bin")}: holds {ids.size} tokens, {path.name} says more; is it complete?'
    )
  for number, (first, last) in enumerate(zip(ends_D[:-1], ends_D[1:], strict=True)):
    parts = [ids[a : a + n] for a, n in zip(starts_S[first:last], sizes_S[first:last], strict=True)]
    if any(part.size for part in parts):
      yield Document(f'{path}, document {number}', _blocks(*parts), file=str(path))


def _mapped(path: Path, dtype: np.dtype, offset: int = 0) -> np.ndarray:
  try:
    size = path.stat().st_size - offset
    if size % dtype.itemsize:
      raise ValueError(f'{path}: {size} bytes are no whole number of {dtype.name}; is it complete?')
    return np.memmap(path, dtype, mode='r', offset=offset) if size else np.empty(0, dtype)
  except OSError as error:
    storage.refuse_passing(path, error)
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from None


def _blocks(*parts: np.ndarray) -> Callable[[], Iterator[np.ndarray]]:
  return lambda: (
    part[at : at + BLOCK_TOKENS] for part in parts for at in range(0, part.size, BLOCK_TOKENS)
  )
