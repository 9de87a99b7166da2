"""Validation batches: the CRT paper's random windows, CART's first windows, the whole split."""

import functools
from collections.abc import Iterator

import numpy as np

from crt_jax.data.token_dataset import PackedDataset
from crt_jax.data.token_files import Tokens
from crt_jax.data.training_batches import Batch, as_batch, check_seed, numbers

IGNORED = -1  # a target that does not count


@functools.singledispatch
def sampled_validation(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  count: int,
  seed: int,
  rows: np.ndarray | None = None,
) -> list[Batch]:
  """Returns `count` fixed batches of random windows, the CRT paper's protocol (docs/crt.md, 8.4).

  Offsets are independent and uniform over [0, N-T), from NumPy's frozen `RandomState(seed)` (the
  paper used torch's, seed 42), so the score belongs to (seed, T, batch_size, count): other values
  draw other windows.

  Args:
    rows: which rows of every batch are wanted, ascending; None = all.

  Returns:
    Batches of int32 [rows, T].

  Raises:
    ValueError: T is longer than a split, or the seed is not in [0, 2^32).
  """
  dataset.check_length(sequence_length, 'sequence_length')
  check_seed(seed)
  rows_b = numbers(rows, batch_size)
  tokens = dataset.validation
  generator = np.random.RandomState(seed)
  starts = generator.randint(
    0, len(tokens) - sequence_length, size=(count, batch_size), dtype=np.int64
  )
  return [as_batch(tokens.windows(starts_B[rows_b], sequence_length + 1)) for starts_B in starts]


@functools.singledispatch
def first_validation(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  count: int,
  rows: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Returns the first `count` windows of T tokens, CART's protocol (docs/cart.md, 5.4).

  All windows have T targets, so the mean over targets is the mean of the windows' losses. A split
  of fewer windows gives all it has.

  Returns:
    Batches as of `whole_validation`.

  Raises:
    ValueError: T is longer than a split.
  """
  windows = min(count, (len(dataset.validation) - 1) // sequence_length)
  predictions = windows * sequence_length
  return _leading(dataset, sequence_length, batch_size, predictions, rows)


@functools.singledispatch
def whole_validation(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  rows: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Returns the whole validation split: each token but the first is a target once.

  All batches have the same shape, int32 [rows, T]; what is missing in the last one is token 0 with
  target -1.

  Raises:
    ValueError: T is longer than a split.
  """
  predictions = len(dataset.validation) - 1
  return _leading(dataset, sequence_length, batch_size, predictions, rows)


def _leading(
  dataset: PackedDataset,
  sequence_length: int,
  batch_size: int,
  predictions: int,
  rows: np.ndarray | None,
) -> Iterator[Batch]:
  """Yields batches in which each of the first `predictions` targets counts once."""
  dataset.check_length(sequence_length, 'sequence_length')
  starts_b = numbers(rows, batch_size) * sequence_length
  return _batches(dataset.validation, sequence_length, batch_size, predictions, starts_b)


def _batches(
  tokens: Tokens, sequence_length: int, batch_size: int, predictions: int, starts_b: np.ndarray
) -> Iterator[Batch]:
  shape = (len(starts_b), sequence_length)
  for first in range(0, predictions, batch_size * sequence_length):
    batch = {'tokens': np.zeros(shape, np.int32), 'targets': np.full(shape, IGNORED, np.int32)}
    for row, start in enumerate((first + starts_b).tolist()):
      size = min(max(predictions - start, 0), sequence_length)
      window = tokens[start : start + size + 1] if size else ()
      batch['tokens'][row, :size] = window[:size]
      batch['targets'][row, :size] = window[1:]
    yield batch
