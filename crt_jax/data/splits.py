"""Which text is held out: separate files, documents by their hash, or the end of the stream."""

import math
from collections.abc import Callable

from crt_jax.data.documents import Survey
from crt_jax.schema.data import DataConfig


def split_rule(config: DataConfig, found: Survey) -> str:
  """Returns 'validation_files' if those are given, else 'document_hash' or 'contiguous'.

  'auto' takes 'document_hash' where there are many documents: at least 1 / validation_fraction (10
  by default). With fewer, no choice of documents comes near that share.
  """
  if config.validation_files:
    return 'validation_files'
  if config.split != 'auto':
    return config.split
  many = math.ceil(1 / config.validation_fraction - 1e-9)
  return 'document_hash' if found.documents >= many else 'contiguous'


def held_out(config: DataConfig, found: Survey) -> Callable[[int], bool]:
  """Returns the rule that maps a document's 64-bit hash to whether it is held out.

  A document is held out when its hash lies in the lowest `validation_fraction` of the range, so
  equal documents go to the same side and adding documents moves none. Where that leaves a side
  empty, the document with the lowest (or highest) hash goes there.

  Raises:
    ValueError: all documents are equal, so no split keeps them apart.
  """
  if found.lowest == found.highest:
    raise ValueError(
      f"data.split='document_hash' cannot split {found.documents} equal document(s); "
      "use data.split='contiguous'"
    )
  threshold = int(config.validation_fraction * 2**64)
  threshold = min(max(threshold, found.lowest + 1), found.highest)
  return lambda document_bits: document_bits < threshold


def contiguous_cut(config: DataConfig, tokens: int) -> int:
  """Returns the size of the train split if the end of the stream is held out (docs/crt.md, 8.1)."""
  return int((1 - config.validation_fraction) * tokens)
