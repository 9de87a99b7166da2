"""Pointer chasing: look up a key whose answer lies a known number of tables away (crt.md 11.1).

A task of h levels and k keys is h blocks and a final query, of fixed length (5k + 2)h + 2:

  level 0    k entries [value, EQUALS, key], SEP, k queries [QUERY, key], SEP
  level l    the same, each entry pointing to a key of level l-1 instead of a value
  final      QUERY and a key of the last level

The target of the key of each query is the value at the end of its chain, at that very position; all
other targets are -1. Batches are a pure function of (seed, step), as those of text are.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np
import tokenizers as hf

from crt_jax.data.tokenizers import JsonTokenizer
from crt_jax.data.training_batches import (
  MAX_SEED,
  MAX_STEPS,
  Batch,
  TrainBatches,
  check_seed,
  numbers,
  train_batches,
)
from crt_jax.data.validation import (
  IGNORED,
  first_validation,
  sampled_validation,
  whole_validation,
)
from crt_jax.schema.data import TASK, DataConfig
from crt_jax.schema.fields import near

NAME = TASK
PAD, QUERY, EQUALS, SEP, FIRST_KEY = range(5)
Draws = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PointerChasing:
  """A task, and its dataset for training and evaluation.

  Attributes:
    levels: h, number of tables.
    keys: k of each level.
    values: v that the chains can end in.
    permutation: every level but the first maps its keys one to one; else independently.
    shuffle: entries and queries of each block stand in random orders; else in that of the keys.
    curriculum: 'step:levels' entries joined by '/': from that step of training on the targets of so
      many levels count, those above do not; '' = all from the start. The final query counts with
      the last level.
    key_curriculum: 'step:keys' likewise: only so many keys of each level are permuted and asked
      for, the others point to their like.
  """

  levels: int = 10
  keys: int = 5
  values: int = 10
  permutation: bool = True
  shuffle: bool = False
  curriculum: str = ''
  key_curriculum: str = ''

  def __post_init__(self):
    for name in ('levels', 'keys', 'values'):
      if getattr(self, name) < 1:
        raise ValueError(f'{NAME}: {name}={getattr(self, name)} must be at least 1')
    _stages('curriculum', self.curriculum, self.levels)
    _stages('key_curriculum', self.key_curriculum, self.keys)

  @classmethod
  def parse(cls, corpus: str) -> 'PointerChasing':
    """Returns the task of a `data.corpus` such as 'pointer_chasing:keys=3,shuffle=true'.

    Raises:
      ValueError: an unknown or ill-typed argument.
    """
    given: dict[str, Any] = {}
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
    for item in filter(None, corpus.partition(':')[2].split(',')):
      name, _, text = item.partition('=')
      if name not in kinds:
        raise ValueError(f'data.corpus={corpus!r}: no argument {name!r}{near(name, kinds)}')
      try:
        given[name] = _READ[kinds[name]](text)
      except (ValueError, KeyError):
        kind = kinds[name].__name__
        raise ValueError(f'data.corpus={corpus!r}: {name}={text!r} must be {kind}') from None
    return cls(**given)

  @property
  def block(self) -> int:
    """The number of tokens of one level."""
    return 5 * self.keys + 2

  @property
  def sequence_length(self) -> int:
    return self.block * self.levels + 2

  @property
  def vocab_size(self) -> int:
    return FIRST_KEY + self.levels * self.keys + self.values

  @property
  def least_window(self) -> int:
    """The number of positions that a model must attend to.

    From the key of a level's last entry back to the first answered query of the level before there
    are 5k; one level needs 3k + 1 for itself.
    """
    return 5 * self.keys if self.levels > 1 else 3 * self.keys + 1

  @functools.cached_property
  def answer_groups(self) -> dict[str, np.ndarray]:
    """The positions of the targets by name: each level, and the final query."""
    first = 3 * self.keys + 2 + 2 * np.arange(self.keys)
    groups = {f'level_{level}': level * self.block + first for level in range(self.levels)}
    return groups | {'final': np.array([self.sequence_length - 1])}

  # ---- what the trainer asks of a data set ------------------------------------------------------

  @property
  def identity(self) -> dict[str, Any]:
    """What must not change while a run continues; JSON-able."""
    return {'task': {'name': NAME, **dataclasses.asdict(self)}, 'tokenizer': self.tokenizer.hash}

  @property
  def validation_sets(self) -> dict[str, 'PointerChasing']:
    return {NAME: self}

  @property
  def training_tokens(self) -> dict[str, int]:
    """Always empty: no example is read twice."""
    return {}

  @functools.cached_property
  def tokenizer(self) -> JsonTokenizer:
    """A tokenizer of token names separated by spaces."""
    names = ['PAD', 'QUERY', 'EQUALS', 'SEP']
    names += [f'key{level}.{i}' for level in range(self.levels) for i in range(self.keys)]
    names += [f'value{i}' for i in range(self.values)]
    words = {name: index for index, name in enumerate(names)}
    tokenizer = hf.Tokenizer(hf.models.WordLevel(words, unk_token='PAD'))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    return JsonTokenizer(tokenizer.to_str())

  @property
  def summary(self) -> str:
    return f'{self.levels} levels of {self.keys} keys, {self.values} values, drawn for every step'

  def bytes_per_token(self, split: str) -> None:
    """Returns None, since the data is no text."""
    del split

  def check_vocabulary(self, model_vocab_size: int) -> None:
    """Raises ValueError unless the model's vocabulary is the task's."""
    if model_vocab_size != self.vocab_size:
      raise ValueError(
        f'model.vocab_size={model_vocab_size} is not the vocabulary of {self.summary}; '
        f'set data.vocab_size to 4 + levels * keys + values = {self.vocab_size}'
      )

  def remarks(self, model: Any) -> list[str]:
    """Returns remarks for a person before `config.model` is trained on this task."""
    window, least = model.window, self.least_window
    if not 0 < window < least:
      return []
    return [
      f'model.window={window} is smaller than one level needs: the last entry of a level lies '
      f'5 * keys = {least} positions, itself included, behind the first answer of the level before '
      f'(a level has 5 * {self.keys} + 2 = {self.block} tokens); use at least {least}'
    ]

  # ---- batches ----------------------------------------------------------------------------------

  def batch(self, seed: int, step: int, batch_size: int) -> Batch:
    """Returns the global training batch of a step: 'tokens' and 'targets', int32 [B, T]."""
    levels = _at_step(_stages('curriculum', self.curriculum, self.levels), step)
    keys = _at_step(_stages('key_curriculum', self.key_curriculum, self.keys), step)
    batch = self.write(self.draw(_generator(seed, step), batch_size, keys), keys)
    targets = batch['targets']
    if levels < self.levels:
      targets[:, levels * self.block :] = IGNORED
    return batch

  def validation_batch(self, seed: int, index: int, batch_size: int) -> Batch:
    """Returns a batch of the full task, whatever the curriculum, that no step trains on."""
    return self.write(self.draw(_generator(seed + MAX_SEED, index), batch_size))

  def draw(self, generator: np.random.RandomState, count: int, keys: int = 0) -> Draws:
    """Draws random choices for `count` examples.

    They are 'base' [B, k] values, 'tables' [B, h-1, k] keys of the level below, 'query' [B], and
    the orders of entries and queries, [B, 2h, k].

    Args:
      keys: so many first keys take part in the permutations and are asked for; 0 = all.
    """
    keys = keys or self.keys
    tables = np.broadcast_to(np.arange(self.keys), (count, self.levels - 1, self.keys)).copy()
    if self.permutation:
      tables[..., :keys] = _permutations(generator, (count, self.levels - 1, keys))
    else:
      tables[..., :keys] = generator.randint(0, keys, (count, self.levels - 1, keys))
    shape = (count, 2 * self.levels, self.keys)
    orders = np.broadcast_to(np.arange(self.keys), shape)
    return {
      'base': generator.randint(0, self.values, (count, self.keys)),
      'tables': tables,
      'query': generator.randint(0, keys, count),
      'orders': _permutations(generator, shape) if self.shuffle else orders,
    }

  def write(self, draws: Draws, keys: int = 0) -> Batch:
    """Writes out these examples; the targets of keys from number `keys` on do not count."""
    tables, orders = draws['tables'], draws['orders']
    count = len(tables)
    tokens = np.full((count, self.sequence_length), SEP, np.int32)
    targets = np.full(tokens.shape, IGNORED, np.int32)
    first_value = FIRST_KEY + self.levels * self.keys
    answers = pointers = first_value + draws['base']
    for level in range(self.levels):
      first_key = FIRST_KEY + level * self.keys
      if level > 0:
        answers = np.take_along_axis(answers, tables[:, level - 1], axis=1)
        pointers = first_key - self.keys + tables[:, level - 1]
      block = tokens[:, level * self.block : (level + 1) * self.block]
      entries, queries = block[:, : 3 * self.keys], block[:, 3 * self.keys + 1 : -1]
      order = orders[:, 2 * level]
      entries[:, 0::3] = np.take_along_axis(pointers, order, axis=1)
      entries[:, 1::3] = EQUALS
      entries[:, 2::3] = first_key + order
      order = orders[:, 2 * level + 1]
      queries[:, 0::2] = QUERY
      queries[:, 1::2] = first_key + order
      asked = np.take_along_axis(answers, order, axis=1)
      counts = order < (keys or self.keys)
      targets[:, self.answer_groups[f'level_{level}']] = np.where(counts, asked, IGNORED)
    tokens[:, -2] = QUERY
    tokens[:, -1] = FIRST_KEY + (self.levels - 1) * self.keys + draws['query']
    targets[:, -1] = np.take_along_axis(answers, draws['query'][:, None], axis=1)[:, 0]
    return {'tokens': tokens, 'targets': targets}


class _Source(grain.sources.RandomAccessDataSource):
  """A Grain source whose element `step` is some rows of the batch of that step."""

  def __init__(self, task: PointerChasing, seed: int, batch_size: int, rows_b: np.ndarray):
    self._task, self._seed, self._batch_size, self._rows_b = task, seed, batch_size, rows_b

  def __len__(self) -> int:
    return MAX_STEPS

  def __getitem__(self, step: int) -> Batch:
    batch = self._task.batch(self._seed, int(step), self._batch_size)
    return {name: a[self._rows_b] for name, a in batch.items()}

  def __repr__(self) -> str:
    return f'_Source({self._task}, seed={self._seed})'


def prepare(config: DataConfig) -> PointerChasing:
  """Returns the task that `data.corpus` describes.

  Raises:
    ValueError: a wrong argument, or a `data.sequence_length` that is not the task's.
  """
  task = PointerChasing.parse(config.corpus)
  if config.sequence_length != task.sequence_length:
    raise ValueError(
      f'data.sequence_length={config.sequence_length} must be (5 * keys + 2) * levels + 2 = '
      f'{task.sequence_length} for {task.summary}'
    )
  return task


@train_batches.register
def _(
  dataset: PointerChasing, config: Any, seed: int, rows: np.ndarray | None = None
) -> TrainBatches:
  check_seed(seed)
  rows_b = numbers(rows, config.batch_size)
  return TrainBatches(_Source(dataset, seed, config.batch_size, rows_b))


@sampled_validation.register
def _(
  dataset: PointerChasing,
  sequence_length: int,
  batch_size: int,
  count: int,
  seed: int,
  rows: np.ndarray | None = None,
) -> list[Batch]:
  check_seed(seed)
  rows_b = numbers(rows, batch_size)
  batches = [dataset.validation_batch(seed, index, batch_size) for index in range(count)]
  return [{name: a[rows_b] for name, a in batch.items()} for batch in batches]


@whole_validation.register
def _(dataset: PointerChasing, *shape_and_rows: Any) -> None:
  raise ValueError(f'eval.whole=True: {NAME} has no end; set eval.whole=False')


@first_validation.register
def _(dataset: PointerChasing, *shape_and_rows: Any) -> None:
  raise ValueError(f"eval.sample='first': {NAME} is not a file; set eval.sample='random'")


_READ: dict[type, Callable[[str], Any]] = {
  int: int,
  str: str,
  bool: {'true': True, 'false': False}.__getitem__,
}


def _generator(seed: int, step: int) -> np.random.RandomState:
  # Counter-based, so any step costs the same; RandomState, because its numbers never change.
  return np.random.RandomState(np.random.Philox(key=np.array([seed, step], np.uint64)))


def _permutations(generator: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
  """Draws independent uniform permutations along the last axis."""
  return np.argsort(generator.random_sample(shape), axis=-1)


def _stages(name: str, text: str, most: int) -> list[tuple[int, int]]:
  """Returns the pairs (first step, number) of a curriculum; everything from step 0 if empty."""
  if not text:
    return [(0, most)]
  try:
    pairs = [entry.split(':') for entry in text.split('/')]
    stages = [(int(first), int(number)) for first, number in pairs]
    steps, numbers = zip(*stages, strict=True)
    is_right = steps[0] == 0 and list(steps) == sorted(set(steps))
  except ValueError:
    is_right, numbers = False, ()
  if not is_right or not all(1 <= number <= most for number in numbers):
    raise ValueError(
      f"{NAME}: {name}={text!r} must read 'step:number' joined by '/', from step 0 on ascending, "
      f'with numbers from 1 to {most}, as in 0:1/1000:{most}'
    )
  return stages


def _at_step(stages: list[tuple[int, int]], step: int) -> int:
  return next(number for first, number in reversed(stages) if first <= step)
