"""Tokenizers: bytes, and what a Hugging Face tokenizer.json describes (vocabularies.py makes them).

A tokenizer is saved as a folder, beside packed data and in every checkpoint, and `load` gives it
back from any place.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers as hf

from crt_jax import json_text, storage

DESCRIPTION = 'crt_tokenizer.json'
DEFINITION = 'tokenizer.json'
PIECE_CHARACTERS = 1 << 16
MOST_CHARACTERS = 1 << 20  # of a piece of unbroken text

# A byte-level pre-tokenizer always starts a new piece where a space follows a non-space, whatever
# comes before, so text may be cut there without changing any token.
_CUT = re.compile(r'(?<=\S)(?=[ \t\r\n])')


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
  """UTF-8 bytes as tokens 0..255, then the special tokens that a separator needs."""

  bos: int | None = None
  eos: int | None = None

  @property
  def vocab_size(self) -> int:
    return 256 + (self.bos is not None) + (self.eos is not None)

  @property
  def hash(self) -> str:
    return _sha256(f'bytes bos={self.bos} eos={self.eos}')

  def encode(self, text: str) -> list[int]:
    return list(_utf8(text))

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode('utf-8'), np.uint8) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; special tokens are left out, incomplete characters become U+FFFD."""
    ids = _checked(ids, self.vocab_size)
    return bytes(token for token in ids if token < 256).decode('utf-8', errors='replace')

  def count_bytes(self, ids: np.ndarray) -> int:
    return int(np.count_nonzero(ids < 256))

  def pieces(self, blocks: Iterator[str]) -> Iterator[str]:
    yield from blocks

  def save(self, folder: str | Path) -> None:
    _save(folder, self, definition=None)


@dataclasses.dataclass(frozen=True)
class JsonTokenizer:
  """A tokenizer.json; a special token written out in a text is ordinary text."""

  definition: str
  bos: int | None = None
  eos: int | None = None

  @functools.cached_property
  def _tokenizer(self) -> hf.Tokenizer:
    tokenizer = hf.Tokenizer.from_str(self.definition)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer

  @functools.cached_property
  def vocab_size(self) -> int:
    return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

  @functools.cached_property
  def hash(self) -> str:
    return _sha256(f'json bos={self.bos} eos={self.eos} {self.definition}')

  @functools.cached_property
  def _byte_level(self) -> bool:
    """Whether each character of a token's name stands for one byte."""
    return (json.loads(self.definition).get('decoder') or {}).get('type') == 'ByteLevel'

  @functools.cached_property
  def _can_be_cut(self) -> bool:
    parts = json.loads(self.definition)
    pre_tokenizer = parts.get('pre_tokenizer') or {}
    return (
      pre_tokenizer.get('type') == 'ByteLevel'
      and pre_tokenizer.get('use_regex', True)
      and not pre_tokenizer.get('add_prefix_space', True)
      and (parts.get('normalizer') or {}).get('type', 'NFKC') in ('NFC', 'NFKC')
      and all(token['special'] for token in parts.get('added_tokens', ()))
    )

  @functools.cached_property
  def _bytes_per_token(self) -> np.ndarray:
    """The UTF-8 bytes of each token of a byte-level vocabulary; 0 for special tokens."""
    lengths = np.zeros(self.vocab_size, np.int64)
    for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
      lengths[index] = len(token)
    for index in self._tokenizer.get_added_tokens_decoder():
      lengths[index] = 0
    return lengths

  @property
  def adds_bos(self) -> bool:
    """Whether its definition begins every text with the start token."""
    return self.bos is not None and self._tokenizer.encode('').ids[:1] == [self.bos]

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(_utf8(text).decode('utf-8'), add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int64) for encoding in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; special tokens are left out, incomplete characters become U+FFFD."""
    return self._tokenizer.decode(_checked(ids, self.vocab_size), skip_special_tokens=True)

  def count_bytes(self, ids: np.ndarray) -> int:
    """Returns the UTF-8 bytes that the tokens stand for (after any normalizer)."""
    if self._byte_level:
      return int(self._bytes_per_token[ids].sum())
    return len(self.decode(ids.tolist()).encode('utf-8'))

  def pieces(self, blocks: Iterator[str]) -> Iterator[str]:
    """Yields the text in pieces that tokenise as the whole does; one piece if impossible.

    Text without a place to cut for MOST_CHARACTERS, such as DNA, is cut there all the same.
    """
    if not self._can_be_cut:
      yield ''.join(blocks)
      return
    rest, searched = '', 0
    for block in blocks:
      rest += block
      start = 0
      while end := _end_of_piece(rest, start, searched):
        yield rest[start:end]
        start = end
      rest = rest[start:]
      searched = len(rest)  # the next character may allow a cut here
    if rest:
      yield rest

  def save(self, folder: str | Path) -> None:
    _save(folder, self, self.definition)


def _end_of_piece(text: str, start: int, searched: int) -> int | None:
  """Returns the end of the piece that begins at `start`; None if it lies beyond this text."""
  most = start + MOST_CHARACTERS
  cut = _CUT.search(text, max(start + PIECE_CHARACTERS, searched))
  if cut and cut.end() <= most:
    return cut.end()
  return most if len(text) > most else None


Tokenizer = ByteTokenizer | JsonTokenizer


def load(folder: str | Path) -> Tokenizer:
  """Returns the tokenizer that `save` wrote into a folder.

  Raises:
    ValueError: the folder holds none, or its files are damaged.
    OutOfReach: they cannot be read, which says nothing against them.
  """
  folder = Path(folder)

  def read(name: str) -> bytes:
    return storage.retried(folder / name, (folder / name).read_bytes)

  try:
    description = json_text.parse(read(DESCRIPTION))
    specials = {'bos': description['bos'], 'eos': description['eos']}
    if description['kind'] == 'bytes':
      tokenizer = ByteTokenizer(**specials)
    else:
      tokenizer = JsonTokenizer(read(DEFINITION).decode('utf-8'), **specials)
    intact = tokenizer.hash == description['hash']
  except FileNotFoundError as error:
    raise ValueError(f'{folder} holds no saved tokenizer: {error.filename} is missing') from None
  except (ValueError, KeyError, TypeError, *storage.MISSING) as error:
    raise ValueError(f'{folder}: the saved tokenizer cannot be read ({error})') from None
  if not intact:
    raise ValueError(f'{folder}: the saved tokenizer is damaged (its hash differs); restore it')
  return tokenizer


def _save(folder: str | Path, tokenizer: Tokenizer, definition: str | None) -> None:
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  if definition is not None:
    (folder / DEFINITION).write_bytes(definition.encode('utf-8'))
  description = {
    'kind': 'bytes' if definition is None else 'json',
    'vocab_size': tokenizer.vocab_size,
    'bos': tokenizer.bos,
    'eos': tokenizer.eos,
    'hash': tokenizer.hash,
  }
  (folder / DESCRIPTION).write_text(json_text.dumps(description, indent=2) + '\n', 'utf-8')


def _utf8(text: str) -> bytes:
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError as error:  # bytes of a terminal that are not UTF-8 arrive like this
    raise ValueError(
      f'character {error.start} of the text is not valid Unicode; remove it'
    ) from None


def _checked(ids: Iterable[int], vocab_size: int) -> list[int]:
  ids = [int(token) for token in ids]
  for token in ids:
    if not 0 <= token < vocab_size:
      raise ValueError(
        f'token id {token} is outside the vocabulary of {vocab_size}; is this their tokenizer?'
      )
  return ids


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode('utf-8')).hexdigest()
