"""`prepare`: from `config.data` to packed data, of one corpus or of a mixture."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crt_jax.data import (
  missing,
  overlap,
  pointer_chasing,
  token_dataset,
  tokenise,
  tokenizers,
  vocabularies,
)
from crt_jax.data.corpora import check_apart, open_corpus
from crt_jax.data.documents import Corpus, Document
from crt_jax.data.mixture import MixedDataset, Mixture, Part
from crt_jax.data.pointer_chasing import PointerChasing
from crt_jax.data.token_dataset import (
  COPY_AGAIN,
  PackedDataset,
  cached,
  corpus_folder,
  folder_name,
  prepare_corpus,
)
from crt_jax.data.token_files import DamagedCache
from crt_jax.data.tokenise import Report, open_tokenizer, training_documents
from crt_jax.schema.data import MIXTURE, DataConfig, resolve

ANEW = '--repair makes it again'  # of crt-prepare

ValidationSet = PackedDataset | PointerChasing
Dataset = ValidationSet | MixedDataset


def prepare(
  config: Any, whole: bool = False, report: Report | None = None, workers: int = 1
) -> Dataset:
  """Opens the packed data that `config` describes; tokenises the text first if needed.

  Args:
    config: `config.data`.
    whole: compare every byte with its checksum, even of large files.
    report: called now and then, while a corpus is tokenised, as `tokenise.pack` says.
    workers: processes that tokenise, as `tokenise.tokenise` says.

  Raises:
    ValueError: a wrong field, a missing, empty or undecodable corpus, a split shorter than
      `sequence_length` + 1, or a cache folder that cannot be written; always one line.
  """
  config = resolve(config)
  if config.corpus.partition(':')[0] == pointer_chasing.NAME:
    return pointer_chasing.prepare(config)
  if config.corpus == MIXTURE:
    return _prepare_mixture(config, whole, report, workers)
  return prepare_corpus(config, _open(config, {'': config})[''], whole, report, workers)


def damaged_files(config: Any) -> list[str]:
  """Returns a line per damaged file of the packed data, with the remedy; changes nothing.

  Raises:
    ValueError: a wrong field, or data that nobody has prepared; always one line.
  """
  config = resolve(config)
  if config.corpus.partition(':')[0] == pointer_chasing.NAME:
    return []
  mixed = config.corpus == MIXTURE
  configs = _of_sources(config) if mixed else {'': config}
  corpora = _open(config, configs)
  try:
    if mixed and config.tokenizer == 'bpe':
      folder = _shared_bpe_folder(config, configs, corpora)
      try:
        open_tokenizer(folder)
      except DamagedCache as error:
        return [f'{error}; {ANEW}']  # the folders of the sources are named by it
      configs = _with_tokenizer(configs, folder)
    return [
      f'{line}; {COPY_AGAIN if own.packed_folder else ANEW}'
      for name, own in configs.items()
      for line in token_dataset.damaged_files(corpus_folder(own, corpora[name]))
    ]
  except FileNotFoundError as error:
    raise ValueError(f'{error.args[0]} does not exist: this data was never prepared') from None


def check_present(config: Any) -> None:
  """Raises one ValueError that names all missing texts and vocabularies, and how to get them."""
  config = resolve(config)
  if config.corpus.partition(':')[0] != pointer_chasing.NAME:
    _open(config, _of_sources(config) if config.corpus == MIXTURE else {'': config})


def _of_sources(config: DataConfig) -> dict[str, DataConfig]:
  return {name: config.of_source(name) for name in config.pattern}


def _open(config: DataConfig, configs: dict[str, DataConfig]) -> dict[str, Corpus]:
  """Returns the corpora by source name, if everything that `config` needs is present."""
  corpora = {}
  with missing.gathered() as gather:
    for name, own in configs.items():
      with gather(), _naming(name):
        corpora[name] = open_corpus(own)
    with gather():
      vocabularies.fingerprint(config)
  return corpora


def _prepare_mixture(
  config: DataConfig, whole: bool, report: Report | None, workers: int
) -> MixedDataset:
  configs = _of_sources(config)
  corpora = _open(config, configs)
  check_apart(configs)
  if config.tokenizer == 'bpe':
    folder = _shared_bpe_folder(config, configs, corpora)
    train = functools.partial(_train_bpe, config, configs, corpora, report)
    cached(folder, open_tokenizer, train)
    configs = _with_tokenizer(configs, folder)
  sources, parts = {}, []
  for name, chunks in config.pattern.items():
    with _naming(name):
      sources[name] = prepare_corpus(configs[name], corpora[name], whole, report, workers)
    parts.append(Part(sources[name].train, chunks, config.sources[name].max_tokens))
  _check_one_tokenizer(sources)
  for held_out, trained in itertools.permutations(sources, 2):
    with _naming(held_out):
      overlap.between(sources[trained], sources[held_out])
  dataset = MixedDataset(sources, Mixture(parts, config.chunk_tokens))
  dataset.check_length(config.sequence_length)
  return dataset


def _check_one_tokenizer(sources: dict[str, PackedDataset]) -> None:
  """Raises ValueError if sources of packed data have different tokenizers."""
  (first, one), *rest = sources.items()
  for name, other in rest:
    if other.tokenizer.hash != one.tokenizer.hash:
      raise ValueError(
        f'data.sources.{name} has another tokenizer than data.sources.{first}; prepare both with '
        'one, such as --config.data.tokenizer=DIR/tokenizer/tokenizer.json'
      )


def _with_tokenizer(configs: dict[str, DataConfig], folder: Path) -> dict[str, DataConfig]:
  """Returns the configurations of sources that share a saved tokenizer."""
  shared = str(folder / tokenizers.DEFINITION)
  return {
    name: dataclasses.replace(own, tokenizer=shared, bpe_documents=0)
    for name, own in configs.items()
  }


def _shared_bpe_folder(
  config: DataConfig, configs: dict[str, DataConfig], corpora: dict[str, Corpus]
) -> Path:
  """Returns the folder of the BPE that all sources share."""
  named = [(own, corpora[name]) for name, own in configs.items()]
  return config.cache_root / folder_name(config, named)


def _train_bpe(
  config: DataConfig,
  configs: dict[str, DataConfig],
  corpora: dict[str, Corpus],
  report: Report | None,
  folder: Path,
) -> None:
  """Trains a BPE on the training documents of all sources, each in turn.

  `bpe_documents` limits the number of documents of each.
  """

  def documents() -> Iterator[Document]:
    for name, own in configs.items():
      of_source = training_documents(own, corpora[name])
      yield from itertools.islice(of_source, config.bpe_documents or None)

  if report is not None:
    report(tokenise.training_of(config), 0, 1)
  everything = dataclasses.replace(config, bpe_documents=0)
  vocabularies.make(everything, documents()).save(folder)


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
  """Adds the source's name to the message of an error in a mixture."""
  try:
    yield
  except missing.Missing as error:
    raise (error.of(source) if source else error) from None
  except ValueError as error:
    if not source:
      raise
    raise ValueError(f'data.sources.{source}: {error}') from None
