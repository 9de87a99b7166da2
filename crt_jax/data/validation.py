"""Validation batches: the CRT paper's seeded random windows, CART's first ones, the whole split."""

import functools
from collections.abc import Iterator

import numpy as np

from crt_jax.data.packed import PackedDataset
from crt_jax.data.token_files import Tokens
from crt_jax.data.windows import Batch, as_batch, check_seed, process_rows

IGNORED = -1  # a target that does not count


@functools.singledispatch
def sampled_validation(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  count: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> list[Batch]:
  """The paper's protocol (docs/crt.md, 8.4): `count` batches of random windows, always the same.

  Offsets are independent and uniform over [0, N-T), from NumPy's frozen `RandomState(seed)` (the
  paper used torch's, seed 42), so the score belongs to (seed, T, batch_size, count): other values
  draw other windows.

  Returns:
    Batches of int32 [batch_size / process_count, T], this process's rows.

  Raises:
    ValueError: T is longer than a split, or the seed is not in [0, 2^32).
  """
  dataset.check_length(sequence_length, 'sequence_length')
  check_seed(seed)
  rows = process_rows(batch_size, process_index, process_count)
  tokens = dataset.validation
  generator = np.random.RandomState(seed)
  starts = generator.randint(
    0, len(tokens) - sequence_length, size=(count, batch_size), dtype=np.int64
  )
  return [as_batch(tokens.windows(starts_b[rows], sequence_length + 1)) for starts_b in starts]


@functools.singledispatch
def first_validation(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  count: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """CART's protocol (docs/cart.md, 5.4): the first `count` windows of T tokens, in file order.

  All windows have T targets, so the mean over targets is the mean of the windows' losses. A split
  of fewer windows gives all it has.

  Returns:
    Batches as of `whole_validation`.

  Raises:
    ValueError: T is longer than a split.
  """
  windows = min(count, (len(dataset.validation) - 1) // sequence_length)
  predictions = windows * sequence_length
  return _leading(dataset, sequence_length, batch_size, predictions, process_index, process_count)


@functools.singledispatch
def whole_validation(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """The whole validation split: each of its N tokens but the first is a target exactly once.

  All batches have the same shape, int32 [batch_size / process_count, T]; what is missing in the
  last one is token 0 with target -1.

  Raises:
    ValueError: T is longer than a split.
  """
  predictions = len(dataset.validation) - 1
  return _leading(dataset, sequence_length, batch_size, predictions, process_index, process_count)


def _leading(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  predictions: int,
  process_index: int,
  process_count: int,
) -> Iterator[Batch]:
  """Batches in which each of the first `predictions` targets counts once."""
  dataset.check_length(sequence_length, 'sequence_length')
  rows = process_rows(batch_size, process_index, process_count)
  return _batches(dataset.validation, sequence_length, batch_size, predictions, rows)


def _batches(
  tokens: Tokens, sequence_length: int, batch_size: int, predictions: int, rows: slice
) -> Iterator[Batch]:
  local = rows.stop - rows.start
  for first in range(0, predictions, batch_size * sequence_length):
    start = min(first + rows.start * sequence_length, predictions)
    stop = min(start + local * sequence_length, predictions)
    inputs = np.zeros(local * sequence_length, np.int32)
    targets = np.full(local * sequence_length, IGNORED, np.int32)
    inputs[: stop - start] = tokens[start:stop]
    targets[: stop - start] = tokens[start + 1 : stop + 1]
    shape = (local, sequence_length)
    yield {'tokens': inputs.reshape(shape), 'targets': targets.reshape(shape)}
