"""`prepare`: from `config.data` to packed data, of one corpus or of a mixture."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crt_jax.data import overlap, pointer_chasing, tokenizers, vocabularies
from crt_jax.data.config import MIXTURE, DataConfig, resolve
from crt_jax.data.corpora import check_apart, open_corpus
from crt_jax.data.documents import Corpus, Document
from crt_jax.data.mixture import Dataset, MixedDataset, Mixture, Part
from crt_jax.data.packed import cached, folder_name, open_tokenizer, prepare_corpus
from crt_jax.data.packing import Report, training_documents


def prepare(config: Any, whole: bool = False, report: Report | None = None) -> Dataset:
  """Opens the packed data that `config` describes, tokenising the text first if nobody has.

  Args:
    config: `config.data`.
    whole: compare every byte with its checksum, even of large files.
    report: called now and then, while a corpus is tokenised, with (bytes done, bytes in all).

  Raises:
    ValueError: a wrong field, a missing, empty or undecodable corpus, a split shorter than
      `sequence_length` + 1, or a cache folder that cannot be written; always one line.
  """
  config = resolve(config)
  if config.corpus.partition(':')[0] == pointer_chasing.NAME:
    return pointer_chasing.prepare(config)
  make = _prepare_mixture if config.corpus == MIXTURE else prepare_corpus
  return make(config, whole, report)


def _prepare_mixture(config: DataConfig, whole: bool, report: Report | None) -> MixedDataset:
  configs = {name: config.of_source(name) for name in config.pattern}
  check_apart(configs)
  if config.tokenizer == 'bpe':
    shared = str(_shared_bpe(config, configs))
    configs = {
      name: dataclasses.replace(own, tokenizer=shared, bpe_documents=0)
      for name, own in configs.items()
    }
  sources, parts = {}, []
  for name, chunks in config.pattern.items():
    with _naming(name):
      sources[name] = prepare_corpus(configs[name], whole, report)
    parts.append(Part(sources[name].train, chunks, config.sources[name].max_tokens))
  for held_out, trained in itertools.permutations(sources, 2):
    with _naming(held_out):
      overlap.between(sources[trained], sources[held_out])
  dataset = MixedDataset(sources, Mixture(parts, config.chunk_tokens))
  dataset.check_length(config.sequence_length)
  return dataset


def _shared_bpe(config: DataConfig, configs: dict[str, DataConfig]) -> Path:
  """The tokenizer.json of a BPE made from the training documents of all sources, each in turn.

  `bpe_documents` counts the documents of each source.
  """
  corpora = []
  for name, own in configs.items():
    with _naming(name):
      corpora.append((own, open_corpus(own)))
  folder = config.cache_root / folder_name(config, corpora)
  cached(folder, open_tokenizer, functools.partial(_train_bpe, config, corpora))
  return folder / tokenizers.DEFINITION


def _train_bpe(config: DataConfig, corpora: list[tuple[DataConfig, Corpus]], folder: Path) -> None:
  def documents() -> Iterator[Document]:
    for own, corpus in corpora:
      yield from itertools.islice(training_documents(own, corpus), config.bpe_documents or None)

  everything = dataclasses.replace(config, bpe_documents=0)
  vocabularies.make(everything, documents()).save(folder)


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
  """Says of which source a mistake is."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'data.sources.{source}: {error}') from None
