"""Packing: a corpus, tokenised into one token file per split, with its manifest."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from crt_jax.data import overlap, tokenizers, vocabularies
from crt_jax.data.cache import open_or_build
from crt_jax.data.corpora import open_corpus
from crt_jax.data.documents import (
  ID_BYTES,
  Corpus,
  Document,
  Survey,
  content_hash,
  leading_bits,
  survey,
  surveyed,
)
from crt_jax.data.manifest import SPLITS, write_manifest
from crt_jax.data.parts import Parts
from crt_jax.data.splits import contiguous_cut, held_out, split_rule
from crt_jax.data.token_files import (
  SHARD_TOKENS,
  DamagedCache,
  TokenFile,
  TokenWriter,
  token_dtype,
)
from crt_jax.data.tokenizers import Tokenizer
from crt_jax.schema.data import DataConfig

_COPY_TOKENS = 1 << 22
_THREADS = 'TOKENIZERS_PARALLELISM'  # which the library reads each time
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
  *,
  parts: Path,
  report: Report | None = None,
  shard_tokens: int = SHARD_TOKENS,
  workers: int = 1,
) -> None:
  """Writes the packed data of a corpus into an empty folder.

  The corpus is read once, and before that to train a BPE, or where validation text must be compared
  with training text or malformed records counted. It is never held in memory: a document of a .txt
  file larger than 1 MiB is a stream too.

  Args:
    config: resolved configuration.
    corpus: what to read.
    folder: an empty folder.
    parts: as of `tokenise`.
    report: called now and then with a stage, its bytes that are done, from 0, and all of them.
    shard_tokens: tokens per file.
    workers: as of `tokenise`.

  Raises:
    ValueError: the corpus is empty, unreadable, changes while it is read, or cannot be split as
      asked.
  """
  made = tokenise(config, corpus, parts, report, workers)
  tokenizer = made.tokenizer
  if open_corpus(config).fingerprint != corpus.fingerprint:
    raise ValueError(f'data.corpus={corpus.name!r} changed while it was read; run again')
  found = surveyed(corpus.name, (part.record for part in made))
  rule = split_rule(config, found)
  tokenizer.save(folder / 'tokenizer')
  writers = {
    split: TokenWriter(folder, split, tokenizer.vocab_size, shard_tokens) for split in SPLITS
  }
  if rule == 'contiguous':
    counts = _cut(config, made, writers, folder)
    tail = (
      writers['validation'].tokens * ID_BYTES if corpus.holds_ids else counts['validation'].bytes
    )
    sides = overlap.by_cut(found.listing, tail)
  else:
    sides = overlap.by_document(found.listing, _split(config, found))
    counts = _divide(made, sides.validation_N, writers)
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
  tokens = sum(count.tokens for count in counts.values())
  logging.info('%d bytes -> %d tokens', found.bytes, tokens)


def tokenise(
  config: DataConfig,
  corpus: Corpus,
  folder: Path,
  report: Report | None = None,
  workers: int = 1,
  is_over: Callable[[], bool] = lambda: False,
) -> Parts:
  """Tokenises a corpus into a folder, as parts; those that are there already are not made again.

  Args:
    folder: for what is unfinished. Processes that are given the same one share the work.
    workers: processes of this host; one alone uses all cores for a BPE.
    is_over: whether others have finished everything meanwhile.

  Returns:
    The parts, which are all there unless `is_over` said so.
  """
  folder.mkdir(exist_ok=True)
  make = functools.partial(_make_tokenizer, config, corpus, report)
  tokenizer = open_or_build(folder / 'tokenizer', open_tokenizer, make)
  parts = Parts(folder, corpus, tokenizer, config.separator)

  def progress(done: int, total: int) -> None:
    if report is not None:
      report(TOKENISING, done, total)

  progress(0, sum(unit.bytes for unit in corpus.units))
  with _helpers(workers - 1, config, corpus.fingerprint, folder):
    parts.make(progress, is_over)
  return parts


def open_tokenizer(folder: Path) -> Tokenizer:
  """Returns the tokenizer of a cache folder.

  Raises:
    FileNotFoundError: nothing is there.
    DamagedCache: it was changed.
  """
  if not folder.is_dir():
    raise FileNotFoundError(folder)
  try:
    return tokenizers.load(folder)
  except ValueError as error:
    raise DamagedCache(str(error)) from None


def _make_tokenizer(
  config: DataConfig, corpus: Corpus, report: Report | None, folder: Path
) -> None:
  """Writes the tokenizer, and does first what needs the whole corpus and may end with a mistake."""
  is_held_out = _never
  if config.tokenizer == 'bpe' or config.validation_files or config.skip_malformed:
    found = survey(corpus)
    is_held_out = _split(config, found)
    if split_rule(config, found) != 'contiguous':  # a cut is known after the work
      overlap.count(overlap.by_document(found.listing, is_held_out), corpus.name)
  if report is not None and config.tokenizer == 'bpe':
    report(training_of(config), 0, 0)
  vocabularies.make(config, _training(corpus, is_held_out)).save(folder)


@contextlib.contextmanager
def _helpers(number: int, config: DataConfig, fingerprint: Any, folder: Path) -> Iterator[None]:
  """Runs so many more processes that make parts.

  Whatever ends one of them, the others take over what it had begun, and meet its mistake.
  """
  if not number:
    yield
    return
  spawn = multiprocessing.get_context('spawn')
  arguments = (config, fingerprint, folder)
  helpers = [spawn.Process(target=_help, args=arguments, daemon=True) for _ in range(number)]
  threads = os.environ.get(_THREADS)
  os.environ[_THREADS] = 'false'  # a process each uses two cores better than threads do
  try:
    for helper in helpers:
      helper.start()
    yield
    if dead := [helper.exitcode for helper in helpers if helper.exitcode]:
      logging.warning(
        '%d of %d workers died (exit codes %s); the others did their work',
        len(dead),
        number + 1,
        ', '.join(map(str, dead)),
      )
  finally:
    for helper in helpers:
      helper.terminate()
      helper.join()
    os.environ.pop(_THREADS)
    if threads is not None:
      os.environ[_THREADS] = threads


def _help(config: DataConfig, fingerprint: Any, folder: Path) -> None:
  """Makes parts in a process of its own, as long as the one that started it lives."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # that one ends it
  parent = multiprocessing.parent_process()
  corpus = open_corpus(config)
  if parent is None or corpus.fingerprint != fingerprint:
    return
  parts = Parts(folder, corpus, tokenizers.load(folder / 'tokenizer'), config.separator)
  with contextlib.suppress(ValueError, OSError):  # the process that started it will say so too
    parts.make(lambda done, total: None, lambda: not parent.is_alive())


def training_of(config: DataConfig) -> str:
  """Returns the stage in which a BPE is trained; how far it is, its library does not say."""
  return f'training a vocabulary of {config.vocab_size:,} tokens'


def training_documents(config: DataConfig, corpus: Corpus) -> Iterator[Document]:
  """Yields the documents that a vocabulary is made from: all that are not held out.

  Under a contiguous cut, which divides tokens, there are no others.
  """
  return _training(corpus, _split(config, survey(corpus)))


def _split(config: DataConfig, found: Survey) -> Callable[[int], bool]:
  """Returns whether a document, by the 64 bits of its hash, goes into the validation split."""
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


def _divide(
  parts: Parts, validation_N: np.ndarray, writers: dict[str, TokenWriter]
) -> dict[str, _Counts]:
  """Writes whole documents into their splits; returns the counts."""
  counts, ended = {split: _Counts() for split in SPLITS}, 0
  for part in parts:
    documents = len(part.text_bytes_N)
    is_held_out_N = validation_N[ended : ended + documents]
    is_held_out_S = validation_N[ended : ended + len(part.counts_S)]
    ended += documents
    changes = np.flatnonzero(np.diff(is_held_out_S, prepend=False))  # the first run is of training
    ends = np.concatenate([[0], np.cumsum(part.counts_S)])
    runs = np.split(part.ids(parts.dtype), ends[changes])
    for index, (split, of_split_N) in enumerate(
      (('train', ~is_held_out_N), ('validation', is_held_out_N))
    ):
      counts[split].documents += int(of_split_N.sum())
      counts[split].bytes += int(part.text_bytes_N[of_split_N].sum())
      writers[split].write(*runs[index::2])
  return counts


def _cut(
  config: DataConfig, parts: Parts, writers: dict[str, TokenWriter], folder: Path
) -> dict[str, _Counts]:
  """Writes the head of the stream into train, the tail into validation; returns the counts."""
  counts = {split: _Counts() for split in SPLITS}
  left = contiguous_cut(config, sum(part.tokens for part in parts))
  for part in parts:
    counts['train'].bytes += int(part.text_bytes_N.sum())
    ids = part.ids(parts.dtype)
    writers['train'].write(ids[:left])
    writers['validation'].write(ids[left:])
    left = max(left - len(ids), 0)
  paths = [folder / shard.file for shard in writers['validation'].close()]
  tail = TokenFile(paths, parts.dtype)
  for start in range(0, len(tail), _COPY_TOKENS):
    counts['validation'].bytes += parts.tokenizer.count_bytes(tail[start : start + _COPY_TOKENS])
  counts['train'].bytes -= counts['validation'].bytes
  return counts
