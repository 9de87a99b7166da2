"""Training batches: windows of T+1 tokens from a token file, a pure function of (seed, step).

A sampling rule says where the B windows of a step begin. It depends on nothing but (seed, step), so
no iterator is saved, any step can be asked for, and the number of processes changes only which rows
each of them reads. With N tokens, T per window:

  shuffled        windows i*T, i < floor((N-1)/T), each once per epoch in an order drawn anew for
                  every epoch (Grain's index shuffle, O(1) memory); a batch may end one epoch and
                  begin the next
  random_offsets  the CRT paper's: B independent offsets, uniform over [0, N-T) (docs/crt.md,
                  section 8.1)
  in_order        CART's: windows i*T in file order, the last partial batch dropped, then from the
                  start (docs/cart.md, section 5.4)
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from crt_jax.data.mixture import Text
from crt_jax.data.token_files import Tokens
from crt_jax.schema.data import DataConfig, resolve

Batch = dict[str, np.ndarray]
# (seed, step, rows_b) -> starts_b, the first token of the windows of those rows of a step.
Rule = Callable[[int, int, np.ndarray], np.ndarray]

MAX_STEPS = 1 << 31
MAX_SEED = 1 << 32
# One thread is enough, since reading is many times faster than training.
_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


class TrainBatches:
  """The training batches of a run; `batches[step]` has the requested rows of that step.

  A batch is {'tokens', 'targets'}, each int32 [rows, T].
  """

  def __init__(self, source: grain.sources.RandomAccessDataSource):
    self._dataset = grain.MapDataset.source(source)

  def __getitem__(self, step: int) -> Batch:
    if not 0 <= step < MAX_STEPS:
      raise IndexError(f'step {step} is outside [0, {MAX_STEPS})')
    batch = self._dataset[step]
    assert batch is not None, 'no step is filtered out'
    return batch

  def iterator(self, start_step: int = 0) -> Iterator[Batch]:
    """Returns the batches of start_step, start_step + 1, ..., read ahead by a thread."""
    return iter(self._dataset[start_step:].to_iter_dataset(_READ_AHEAD))


class WindowSource(grain.sources.RandomAccessDataSource):
  """A Grain source whose element `step` is some rows of the batch of that step."""

  def __init__(
    self, tokens: Tokens, sequence_length: int, rule: Rule, seed: int, rows_b: np.ndarray
  ):
    self._tokens, self._sequence_length = tokens, sequence_length
    self._rule, self._seed, self._rows_b = rule, seed, rows_b

  def __len__(self) -> int:
    return MAX_STEPS

  def __getitem__(self, step: int) -> Batch:
    starts_b = self._rule(self._seed, int(step), self._rows_b)
    return as_batch(self._tokens.windows(starts_b, self._sequence_length + 1))

  def __repr__(self) -> str:
    return f'WindowSource({len(self._tokens)} tokens, T={self._sequence_length}, seed={self._seed})'


@functools.singledispatch
def train_batches(
  dataset: Text, config: Any, seed: int, rows: np.ndarray | None = None
) -> TrainBatches:
  """Returns the training batches of a run, or the rows of them that one process needs.

  Args:
    dataset: from `prepare`; only its train split is read. Generated data registers itself.
    config: `config.data`, for `sequence_length` T, the global `batch_size` B, and `sampling`.
    seed: 0 <= seed < 2^32.
    rows: which rows of every global batch, ascending; None = all.

  Raises:
    ValueError: T longer than a split, or the seed out of range.
  """
  config = resolve(config)
  dataset.check_length(config.sequence_length)
  check_seed(seed)
  rows_b = numbers(rows, config.batch_size)
  rule = _rule(config, len(dataset.train))
  return TrainBatches(WindowSource(dataset.train, config.sequence_length, rule, seed, rows_b))


def check_seed(seed: int) -> None:
  """Raises ValueError unless 0 <= seed < 2^32."""
  if not 0 <= seed < MAX_SEED:
    raise ValueError(f'seed={seed} must lie in [0, 2^32)')


def numbers(rows: np.ndarray | None, batch_size: int) -> np.ndarray:
  """Returns the indices of some rows of a batch; None = all."""
  return np.arange(batch_size) if rows is None else np.asarray(rows)


def as_batch(windows: np.ndarray) -> Batch:
  """Returns windows [B, T+1] as tokens [B, T] and the targets [B, T] one position later."""
  return {'tokens': windows[:, :-1].astype(np.int32), 'targets': windows[:, 1:].astype(np.int32)}


def _rule(config: DataConfig, tokens: int) -> Rule:
  length, batch_size = config.sequence_length, config.batch_size
  windows = (tokens - 1) // length
  if config.sampling == 'shuffled':
    return functools.partial(_shuffled, windows, length, batch_size)
  if config.sampling == 'random_offsets':
    return functools.partial(_random_offsets, tokens - length, batch_size)
  if windows < batch_size:
    raise ValueError(
      f'data.batch_size={batch_size} exceeds the {windows} windows there are, and '
      f"data.sampling='in_order' drops partial batches; use at most {windows}"
    )
  return functools.partial(_in_order, windows // batch_size, length, batch_size)


def _shuffled(
  windows: int, length: int, batch_size: int, seed: int, step: int, rows_b: np.ndarray
) -> np.ndarray:
  starts_b = np.empty(len(rows_b), np.int64)
  for place, row in enumerate(rows_b.tolist()):
    epoch, position = divmod(step * batch_size + row, windows)
    index = index_shuffle(position, windows - 1, _epoch_seed(seed, epoch), 4)
    starts_b[place] = index * length
  return starts_b


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
  # seed + epoch would make the second epoch of one seed equal the first of the next.
  return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def _random_offsets(
  offsets: int, batch_size: int, seed: int, step: int, rows_b: np.ndarray
) -> np.ndarray:
  # Counter-based, so any step costs the same; RandomState and not Generator, because NumPy promises
  # that its numbers never change.
  generator = np.random.RandomState(np.random.Philox(key=np.array([seed, step], np.uint64)))
  return generator.randint(0, offsets, size=batch_size, dtype=np.int64)[rows_b]


def _in_order(
  batches: int, length: int, batch_size: int, seed: int, step: int, rows_b: np.ndarray
) -> np.ndarray:
  del seed  # the order is that of the file
  return (step % batches * batch_size + rows_b.astype(np.int64)) * length
