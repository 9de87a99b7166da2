"""Finds validation text that is also trained on: counts documents, refuses whole files.

Documents are compared by 64 bits of the sha256 of their text, files by those of their documents. So
it does not matter how a path is written, or whether a file is a link, a copy, or packed.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crt_jax.data.documents import Listing, leading_bits
from crt_jax.data.token_files import Shard, sampled_sha256

if TYPE_CHECKING:
  from crt_jax.data.token_dataset import PackedDataset

DTYPE = np.dtype('<u8')


@dataclasses.dataclass(frozen=True)
class Sides:
  """Which documents of a corpus are training and which are validation text."""

  listing: Listing
  train_N: np.ndarray
  validation_N: np.ndarray

  def of_files(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the files' digests, and which files have documents in each split."""
    bits_N = self.listing.bits_N
    starts_F = np.searchsorted(self.listing.file_N, np.arange(len(self.listing.files)))
    stops_F = [*starts_F[1:], len(bits_N)]
    digests = (
      hashlib.sha256(bits_N[a:b].data).digest() for a, b in zip(starts_F, stops_F, strict=True)
    )
    bits_F = np.fromiter(map(leading_bits, digests), DTYPE, len(starts_F))
    train_F = np.logical_or.reduceat(self.train_N, starts_F)
    return bits_F, train_F, np.logical_or.reduceat(self.validation_N, starts_F)


def by_document(listing: Listing, is_held_out: Callable) -> Sides:
  """Returns the sides if whole documents are held out, by their files or by their hashes."""
  validation_N = listing.held_out_N | is_held_out(listing.bits_N)
  return Sides(listing, ~validation_N, validation_N)


def by_cut(listing: Listing, validation_bytes: int) -> Sides:
  """Returns the sides if the last bytes of the corpus are held out; one document may be cut."""
  ends_N = np.cumsum(listing.sizes_N)
  cut = ends_N[-1] - validation_bytes
  return Sides(listing, ends_N - listing.sizes_N < cut, ends_N > cut)


def count(sides: Sides, corpus: str) -> int:
  """Returns the number of validation documents that are training documents too.

  Raises:
    ValueError: all of them are, or a file of the validation text has the text of one for training.
  """
  bits_N = sides.listing.bits_N
  found = int(_elsewhere(bits_N, sides.train_N, sides.validation_N).sum())
  if not found:
    return 0
  bits_F, train_F, validation_F = sides.of_files()
  twins = np.flatnonzero(_elsewhere(bits_F, train_F, validation_F))
  if len(twins):
    [held_out, *_] = twins
    same = np.flatnonzero((bits_F == bits_F[held_out]) & train_F)
    trained = next(int(file) for file in same if file != held_out)
    names = sides.listing.files
    raise ValueError(
      f'data.corpus={corpus!r}: {names[int(held_out)]} is validation text and has the same text as '
      f'{names[trained]}, which is trained on; leave one of them out'
    )
  if found == sides.validation_N.sum():
    raise ValueError(
      f'data.corpus={corpus!r}: each of the {found} validation documents is trained on too; hold '
      'out others'
    )
  return found


def _elsewhere(bits_N: np.ndarray, train_N: np.ndarray, validation_N: np.ndarray) -> np.ndarray:
  """Returns which validation digests also occur, at another place, in training."""
  cut_N = train_N & validation_N
  found_N = validation_N & ~cut_N & np.isin(bits_N, bits_N[train_N])
  return found_N | (cut_N & np.isin(bits_N, bits_N[train_N & ~cut_N]))


def write(sides: Sides, found: int, folder: Path) -> dict[str, Any]:
  """Writes the digests of each split; returns their manifest entry."""
  bits_F, train_F, validation_F = sides.of_files()
  bits_N = sides.listing.bits_N
  digests = {
    'train': {'documents': bits_N[sides.train_N], 'files': bits_F[train_F]},
    'validation': {'documents': bits_N[sides.validation_N], 'files': bits_F[validation_F]},
  }
  shards = {}
  for split, of_split in digests.items():
    for kind, bits in of_split.items():
      path = folder / f'{split}-{kind}.bin'
      raw = np.unique(bits).astype(DTYPE).tobytes()
      path.write_bytes(raw)
      sha256 = hashlib.sha256(raw).hexdigest()
      shard = Shard(path.name, len(raw) // DTYPE.itemsize, sha256, sampled_sha256(path))
      shards[f'{split}-{kind}'] = dataclasses.asdict(shard)
  return {'documents': found, 'of': int(sides.validation_N.sum()), 'digests': shards}


def shards_of(manifest: dict[str, Any]) -> list[Shard]:
  """Returns the files of digests; [] for data packed before digests were written."""
  return [Shard(**shard) for shard in manifest.get('overlap', {}).get('digests', {}).values()]


def remark(found: int, of: int) -> str:
  return f'{found:,} of {of:,} validation documents are trained on too'


def between(trained: 'PackedDataset', held_out: 'PackedDataset') -> tuple[int, int]:
  """Returns the shared documents of two corpora's splits, and the validation documents in all.

  Both count different documents; (0, 0) for data packed before digests were written.

  Args:
    trained, held_out: 'PackedDataset's.

  Raises:
    ValueError: all of them are, or a whole file is.
  """
  if trained.identity == held_out.identity:  # cut at the same place
    return 0, 0
  found, of = _shared(trained, held_out, 'documents')
  if found and (found == of or _shared(trained, held_out, 'files')[0]):
    raise ValueError(
      f'{found:,} of its {of:,} validation documents, among them whole files, are trained on in '
      'another source; leave them out of one'
    )
  return found, of


def _shared(trained: 'PackedDataset', held_out: 'PackedDataset', kind: str) -> tuple[int, int]:
  pair = []
  for packed, split in ((trained, 'train'), (held_out, 'validation')):
    shards = packed.manifest.get('overlap', {}).get('digests')
    if shards is None:
      return 0, 0
    pair.append(np.fromfile(packed.folder / shards[f'{split}-{kind}']['file'], DTYPE))
  return int(np.isin(pair[1], pair[0]).sum()), len(pair[1])
