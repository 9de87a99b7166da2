"""Several corpora as one training stream: chunks in a repeated pattern, nothing copied.

With chunks of c tokens and the pattern a:3, b:3, d:4 the stream is the first three chunks of a, the
first three of b, the first four of d, then the next ones, until a source cannot fill its part of a
period (docs/cart.md, section 5.2).
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from crt_jax.data import overlap
from crt_jax.data.token_dataset import PackedDataset, TextDataset
from crt_jax.data.token_files import Tokens
from crt_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Part:
  """The part of a mixture that one source gives.

  Attributes:
    tokens: the source, read in order from its start.
    chunks: how many it gives to each period.
    max_tokens: how many of its tokens may be used; 0 = all.
  """

  tokens: Tokens
  chunks: int
  max_tokens: int = 0

  def periods(self, chunk_tokens: int) -> int:
    """Returns the number of periods that the source's tokens last for."""
    available = min(len(self.tokens), self.max_tokens or len(self.tokens))
    return available // (self.chunks * chunk_tokens)


class Mixture(Tokens):
  """The chunks of several sources as one interleaved sequence, in whole periods only."""

  def __init__(self, parts: Sequence[Part], chunk_tokens: int):
    self._chunk_tokens, self._parts = chunk_tokens, parts
    # For each place in a period: the source, its chunks in a period, and those of them before.
    self._places = [(part, before) for part in parts for before in range(part.chunks)]
    self._periods = min(part.periods(chunk_tokens) for part in parts)
    self.dtype = parts[0].tokens.dtype

  def __len__(self) -> int:
    return self._periods * len(self._places) * self._chunk_tokens

  def tokens_of(self, index: int) -> int:
    """Returns the number of tokens that a part gives in total."""
    return self._periods * self._parts[index].chunks * self._chunk_tokens

  def _read(self, start: int, stop: int) -> np.ndarray:
    tokens, done = np.empty(stop - start, self.dtype), 0
    while done < len(tokens):
      chunk, offset = divmod(start + done, self._chunk_tokens)
      period, place = divmod(chunk, len(self._places))
      part, before = self._places[place]
      first = (period * part.chunks + before) * self._chunk_tokens + offset
      size = min(self._chunk_tokens - offset, len(tokens) - done)
      tokens[done : done + size] = part.tokens[first : first + size]
      done += size
    return tokens


@dataclasses.dataclass(frozen=True)
class MixedDataset(TextDataset):
  """A mixture for training, and one validation set for each of its sources.

  Attributes:
    sources: name -> packed data, in the order of the pattern; all with one tokenizer.
    train: the mixture of their train splits.
  """

  sources: dict[str, PackedDataset]
  train: Mixture

  @property
  def tokenizer(self) -> Tokenizer:
    return self._first.tokenizer

  @property
  def validation_sets(self) -> dict[str, PackedDataset]:
    """Name -> the data of that validation split."""
    return self.sources

  @functools.cached_property
  def shared_text(self) -> list[str]:
    """Remarks on validation documents that some source also trains on."""
    found = [f'{name}: {said}' for name, own in self.sources.items() for said in own.shared_text]
    for held_out, trained in itertools.permutations(self.sources, 2):
      shared, of = overlap.between(self.sources[trained], self.sources[held_out])
      if shared:
        found.append(f'{held_out}: {overlap.remark(shared, of)}, in {trained}')
    return found

  @property
  def training_tokens(self) -> dict[str, int]:
    """Name -> the number of a source's tokens in the mixture."""
    return {name: self.train.tokens_of(index) for index, name in enumerate(self.sources)}

  @property
  def identity(self) -> dict[str, Any]:
    """What must not change while a run continues; JSON-able."""
    of_sources = {name: source.identity for name, source in self.sources.items()}
    return {
      what: {name: identity[what] for name, identity in of_sources.items()}
      for what in ('corpus', 'split', 'size of the splits')
    } | {'tokenizer': self.tokenizer.hash}

  def check_length(self, sequence_length: int, field: str = 'data.sequence_length') -> None:
    """Raises ValueError if a split or the mixture is too short for one window."""
    for source in self.sources.values():
      source.check_length(sequence_length, field)
    if len(self.train) < sequence_length + 1:
      raise ValueError(
        f'{field}={sequence_length} needs {sequence_length + 1} tokens but the mixture has '
        f'{len(self.train)}: it ends with the first source that cannot fill a period; use a smaller'
        ' data.chunk_tokens or more text'
      )

  def check_vocabulary(self, model_vocab_size: int) -> None:
    """Raises ValueError if a token id has no row in the model's embedding."""
    self._first.check_vocabulary(model_vocab_size)

  @property
  def _first(self) -> PackedDataset:
    return next(iter(self.sources.values()))


Text = PackedDataset | MixedDataset
