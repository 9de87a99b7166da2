"""Packing: a corpus, tokenised as a stream into one token file per split, with its manifest."""

import dataclasses
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import logging

from crt_jax.data import overlap, vocabularies
from crt_jax.data.documents import (
  ID_BYTES,
  Corpus,
  Document,
  Survey,
  as_bytes,
  content_hash,
  leading_bits,
  survey,
)
from crt_jax.data.manifest import SPLITS, write_manifest
from crt_jax.data.splits import contiguous_cut, held_out, split_rule
from crt_jax.data.token_files import SHARD_TOKENS, TokenFile, TokenWriter, token_dtype
from crt_jax.data.tokenizers import Tokenizer
from crt_jax.schema.data import DataConfig

_BATCH_CHARACTERS = 1 << 21  # tokenised at once: enough for all cores, little memory
_COPY_TOKENS = 1 << 22
TOKENISING = 'tokenising'

Report = Callable[[str, int, int], None]  # a stage, bytes of it that are done, all of them


@dataclasses.dataclass
class _Counts:
  """Documents, UTF-8 bytes and tokens of one split."""

  documents: int = 0
  bytes: int = 0
  tokens: int = 0


def pack(
  config: DataConfig,
  corpus: Corpus,
  folder: Path,
  report: Report | None = None,
  shard_tokens: int = SHARD_TOKENS,
) -> None:
  """Writes the packed data of a corpus into an empty folder.

  The corpus is read three times at most (to count and hash it, to train a BPE, to tokenise it) and
  is never held in memory: a document of a .txt file larger than 1 MiB is a stream too.

  Args:
    config: resolved configuration.
    corpus: what to read.
    folder: an empty folder.
    report: called now and then with a stage, its bytes that are done, from 0, and all of them.
    shard_tokens: tokens per file.

  Raises:
    ValueError: the corpus is empty, unreadable, changes while it is read, or cannot be split as
      asked.
  """
  started = time.monotonic()
  found = survey(corpus)
  rule, is_held_out = split_rule(config, found), _split(config, found)
  if rule != 'contiguous':  # before the work; a cut is known after it
    sides = overlap.by_document(found.listing, is_held_out)
    shared = overlap.count(sides, corpus.name)
  if report is not None and config.tokenizer == 'bpe':
    report(training_of(config), 0, 1)
  tokenizer = vocabularies.make(config, _training(corpus, is_held_out))
  tokenizer.save(folder / 'tokenizer')

  counts = {split: _Counts() for split in SPLITS}
  writers = {
    split: TokenWriter(folder, split, tokenizer.vocab_size, shard_tokens) for split in SPLITS
  }
  target = writers
  if rule == 'contiguous':
    stream = TokenWriter(folder, 'stream', tokenizer.vocab_size, shard_tokens)
    target = dict.fromkeys(SPLITS, stream)
  total = hashlib.sha256()
  items = _items(config.separator, tokenizer, corpus, is_held_out, counts, total)
  counted = np.ndarray if corpus.holds_ids else str
  for split, ids in _encoded(tokenizer, items, report, found.bytes, counted):
    target[split].write(ids)
  if total.hexdigest() != found.sha256:
    raise ValueError(f'data.corpus={corpus.name!r} changed while it was read; run again')
  if rule == 'contiguous':
    _cut(config, tokenizer, stream, writers, folder, counts)
    of_ids = corpus.holds_ids
    last = ID_BYTES * writers['validation'].tokens if of_ids else counts['validation'].bytes
    sides = overlap.by_cut(found.listing, last)
    shared = overlap.count(sides, corpus.name)
  shards = {split: writers[split].close() for split in SPLITS}
  for split in SPLITS:
    counts[split].tokens = writers[split].tokens

  write_manifest(
    folder,
    {
      'corpus': {
        'name': corpus.name,
        'sha256': found.sha256,
        'documents': found.documents,
        'bytes': sum(count.bytes for count in counts.values()),
      },
      'tokenizer': {
        'name': config.tokenizer,
        'hash': tokenizer.hash,
        'vocab_size': tokenizer.vocab_size,
        'bos': tokenizer.bos,
        'eos': tokenizer.eos,
      },
      'separator': config.separator,
      'split': {'rule': rule, 'validation_fraction': config.validation_fraction},
      'overlap': overlap.write(sides, shared, folder),
      'dtype': token_dtype(tokenizer.vocab_size).str,
      'splits': {
        split: {
          **dataclasses.asdict(counts[split]),
          'documents': None if rule == 'contiguous' else counts[split].documents,
          'shards': [dataclasses.asdict(shard) for shard in shards[split]],
        }
        for split in SPLITS
      },
      'versions': {name: importlib.metadata.version(name) for name in ('numpy', 'tokenizers')},
    },
  )
  seconds = time.monotonic() - started
  tokens = sum(count.tokens for count in counts.values())
  logging.info('%d bytes -> %d tokens in %.1f s', found.bytes, tokens, seconds)


def training_of(config: DataConfig) -> str:
  """The stage in which a BPE is trained; how far it is, its library does not say."""
  return f'training a vocabulary of {config.vocab_size:,} tokens'


def training_documents(config: DataConfig, corpus: Corpus) -> Iterator[Document]:
  """The documents that a vocabulary is made from: all that are not held out.

  Under a contiguous cut, which divides tokens, there are no others.
  """
  return _training(corpus, _split(config, survey(corpus)))


def _split(config: DataConfig, found: Survey) -> Callable[[int], bool]:
  """Whether a document, by the 64 bits of its hash, goes into the validation split."""
  return held_out(config, found) if split_rule(config, found) == 'document_hash' else _never


def _never(document_bits: int) -> bool:
  del document_bits
  return False


def _training(corpus: Corpus, is_held_out: Callable[[int], bool]) -> Iterator[Document]:
  for document in corpus.documents():
    if document.held_out:
      continue
    if is_held_out is _never or not is_held_out(leading_bits(content_hash(document)[0])):
      yield document


def _items(
  separator: str,
  tokenizer: Tokenizer,
  corpus: Corpus,
  is_held_out: Callable[[int], bool],
  counts: dict[str, _Counts],
  total: 'hashlib._Hash',
) -> Iterator[tuple[str, str | np.ndarray]]:
  """(split, text to tokenise or ids to write), in order; fills in counts and the corpus hash."""
  before = np.array([tokenizer.bos] if separator == 'bos_eos' else [], np.int64)
  after = np.array([] if separator == 'none' else [tokenizer.eos], np.int64)
  for document in corpus.documents():
    digest, size = content_hash(document)
    total.update(digest)
    is_validation = document.held_out or is_held_out(leading_bits(digest))
    split = 'validation' if is_validation else 'train'
    counts[split].documents += 1
    if corpus.holds_ids:
      for ids in document.blocks():
        counts[split].bytes += tokenizer.count_bytes(ids)
        yield split, ids
      continue
    counts[split].bytes += size
    yield split, before
    for piece in tokenizer.pieces(document.blocks()):
      yield split, piece
    yield split, after


def _encoded(
  tokenizer: Tokenizer,
  items: Iterator[tuple[str, str | np.ndarray]],
  report: Report | None,
  total_bytes: int,
  counted: type,
) -> Iterator[tuple[str, np.ndarray]]:
  """The same items with the texts tokenised, many at a time so that all cores have work; `counted`
  is the type of those that are no separators."""
  batch, characters, done = [], 0, 0
  if report is not None:
    report(TOKENISING, 0, total_bytes)
  for split, item in items:
    batch.append((split, item))
    characters += len(item)
    if characters >= _BATCH_CHARACTERS:
      yield from _encode(tokenizer, batch)
      if report is not None:
        done += sum(len(as_bytes(item)) for _, item in batch if isinstance(item, counted))
        report(TOKENISING, done, total_bytes)
      batch, characters = [], 0
  yield from _encode(tokenizer, batch)


def _encode(
  tokenizer: Tokenizer, batch: list[tuple[str, str | np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
  encoded = iter(tokenizer.encode_batch([item for _, item in batch if isinstance(item, str)]))
  for split, item in batch:
    yield split, next(encoded) if isinstance(item, str) else item


def _cut(
  config: DataConfig,
  tokenizer: Tokenizer,
  stream: TokenWriter,
  writers: dict[str, TokenWriter],
  folder: Path,
  counts: dict[str, _Counts],
) -> None:
  """Copies the head of the stream into the train split and the tail into the validation split."""
  paths = [folder / shard.file for shard in stream.close()]
  tokens = TokenFile(paths, token_dtype(tokenizer.vocab_size))
  cut = contiguous_cut(config, len(tokens))
  for split, start, stop in (('train', 0, cut), ('validation', cut, len(tokens))):
    for position in range(start, stop, _COPY_TOKENS):
      ids = tokens[position : min(position + _COPY_TOKENS, stop)]
      writers[split].write(ids)
      if split == 'validation':
        counts['validation'].bytes += tokenizer.count_bytes(ids)
  counts['train'].bytes -= counts['validation'].bytes
  for path in paths:
    path.unlink()
