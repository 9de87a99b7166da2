"""`prepare`: from `config.data` to packed data, of one corpus or of a mixture."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crt_jax.data import overlap, pointer_chasing, token_dataset, tokenizers, vocabularies
from crt_jax.data.corpora import check_apart, open_corpus
from crt_jax.data.documents import Corpus, Document
from crt_jax.data.mixture import MixedDataset, Mixture, Part
from crt_jax.data.pointer_chasing import PointerChasing
from crt_jax.data.token_dataset import (
  PackedDataset,
  cached,
  corpus_folder,
  folder_name,
  open_tokenizer,
  prepare_corpus,
)
from crt_jax.data.token_files import DamagedCache
from crt_jax.data.tokenise import Report, training_documents
from crt_jax.schema.data import MIXTURE, DataConfig, resolve

ValidationSet = PackedDataset | PointerChasing
Dataset = ValidationSet | MixedDataset


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


def damaged_files(config: Any) -> list[str]:
  """Returns a line for every file of the packed data that `config` describes which is not what was
  written; reads every byte, builds and changes nothing.

  Raises:
    ValueError: a wrong field, or data that nobody has prepared; always one line.
  """
  config = resolve(config)
  if config.corpus.partition(':')[0] == pointer_chasing.NAME:
    return []
  try:
    if config.corpus != MIXTURE:
      return token_dataset.damaged_files(corpus_folder(config))
    configs = {name: config.of_source(name) for name in config.pattern}
    if config.tokenizer == 'bpe':
      folder, _ = _shared_bpe_folder(config, configs)
      try:
        open_tokenizer(folder)
      except DamagedCache as error:
        return [str(error)]  # the folders of the sources are named by it
      configs = _with_tokenizer(configs, folder)
    return [
      line
      for name in config.pattern
      for line in token_dataset.damaged_files(corpus_folder(configs[name]))
    ]
  except FileNotFoundError as error:
    raise ValueError(f'{error.args[0]} is not there: nobody has prepared this data') from None


def _prepare_mixture(config: DataConfig, whole: bool, report: Report | None) -> MixedDataset:
  configs = {name: config.of_source(name) for name in config.pattern}
  check_apart(configs)
  if config.tokenizer == 'bpe':
    configs = _with_tokenizer(configs, _shared_bpe(config, configs))
  sources, parts = {}, []
  for name, chunks in config.pattern.items():
    with _naming(name):
      sources[name] = prepare_corpus(configs[name], whole, report)
    parts.append(Part(sources[name].train, chunks, config.sources[name].max_tokens))
  _check_one_tokenizer(sources)
  for held_out, trained in itertools.permutations(sources, 2):
    with _naming(held_out):
      overlap.between(sources[trained], sources[held_out])
  dataset = MixedDataset(sources, Mixture(parts, config.chunk_tokens))
  dataset.check_length(config.sequence_length)
  return dataset


def _check_one_tokenizer(sources: dict[str, PackedDataset]) -> None:
  """Raises ValueError where packed data brings another tokenizer than its neighbours."""
  (first, one), *rest = sources.items()
  for name, other in rest:
    if other.tokenizer.hash != one.tokenizer.hash:
      raise ValueError(
        f'data.sources.{name} has another tokenizer than data.sources.{first}; prepare both with '
        'one, such as --config.data.tokenizer=DIR/tokenizer/tokenizer.json'
      )


def _with_tokenizer(configs: dict[str, DataConfig], folder: Path) -> dict[str, DataConfig]:
  """The configurations of sources that share a saved tokenizer."""
  shared = str(folder / tokenizers.DEFINITION)
  return {
    name: dataclasses.replace(own, tokenizer=shared, bpe_documents=0)
    for name, own in configs.items()
  }


def _shared_bpe(config: DataConfig, configs: dict[str, DataConfig]) -> Path:
  """The folder of a BPE made from the training documents of all sources, each in turn.

  `bpe_documents` counts the documents of each source.
  """
  folder, corpora = _shared_bpe_folder(config, configs)
  cached(folder, open_tokenizer, functools.partial(_train_bpe, config, corpora))
  return folder


def _shared_bpe_folder(
  config: DataConfig, configs: dict[str, DataConfig]
) -> tuple[Path, list[tuple[DataConfig, Corpus]]]:
  """Where it lies, and the sources it is made from."""
  corpora = []
  for name, own in configs.items():
    with _naming(name):
      corpora.append((own, open_corpus(own)))
  return config.cache_root / folder_name(config, corpora), corpora


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
