"""Packed data: opens what a cache folder holds, and fills the folder if needed.

A cache folder is named by everything that decides its contents, and holds

  manifest.json        what it was made from, counts and checksums; written last
  tokenizer/           the tokenizer, as `tokenizers.load` reads it
  train-00000.bin ...  flat tokens (token_files.py)
  validation-00000.bin ...
  train-documents.bin, train-files.bin, validation-...  digests of the texts (overlap.py)

Before use it is compared with its checksums, once a host (verified.py): every byte of up to 256 MiB
of tokens, of more the sizes and 256 MiB of samples; `crt-prepare --verify` reads all of it.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from crt_jax import storage
from crt_jax.data import overlap, parts, tokenizers, verified, vocabularies
from crt_jax.data.cache import Shared, open_or_build
from crt_jax.data.documents import Corpus
from crt_jax.data.manifest import FORMAT_VERSION, SPLITS, manifest_path, read_manifest
from crt_jax.data.token_files import (
  READ_WHOLE_BYTES,
  DamagedCache,
  Shard,
  TokenFile,
  Tokens,
  damage,
  verify,
)
from crt_jax.data.tokenise import Report, open_tokenizer, pack, tokenise
from crt_jax.schema.data import DataConfig

COPY_AGAIN = 'copy it again'  # of packed data, whose text is elsewhere

Opened = TypeVar('Opened')


class _Text(Protocol):
  """The attributes of a dataset made of text."""

  @property
  def train(self) -> Tokens: ...

  @property
  def tokenizer(self) -> tokenizers.Tokenizer: ...

  @property
  def validation_sets(self) -> dict[str, 'PackedDataset']: ...

  @property
  def shared_text(self) -> list[str]: ...


class TextDataset:
  """What text datasets answer to questions that generated datasets also answer."""

  @property
  def summary(self: _Text) -> str:
    """The amount of text, in words."""
    held_out = sum(len(packed.validation) for packed in self.validation_sets.values())
    samples = any(packed.is_sampled for packed in self.validation_sets.values())
    return f'{len(self.train):,} tokens for training, {held_out:,} for validation' + samples * (
      ' (samples of the files were compared with their checksums; crt-prepare --verify reads every '
      'byte)'
    )

  @property
  def answer_groups(self) -> dict[str, np.ndarray]:
    """Name -> positions whose accuracy is reported: none for text."""
    return {}

  def remarks(self: _Text, model: Any) -> list[str]:
    """Returns remarks for a person before `config.model` is trained on this data."""
    size = self.tokenizer.vocab_size
    if model.vocab_size <= size:
      return self.shared_text
    return self.shared_text + [
      f'model.vocab_size={model.vocab_size}, but the tokenizer has {size} tokens: '
      f'{model.vocab_size - size} rows of the embedding and of the output layer are dead'
    ]


@dataclasses.dataclass(frozen=True)
class PackedDataset(TextDataset):
  """Tokenised text, opened.

  Attributes:
    manifest: the manifest as a dict. `manifest['splits'][split]` has `tokens` (separators
      included), `bytes` (UTF-8 bytes of the text they stand for), `documents` (None under a
      contiguous cut) and `shards`.
    tokenizer: encodes and decodes these tokens.
    train, validation: the token files.
    folder: where it lies.
    is_sampled: whether only samples of its files were compared with their checksums.
  """

  manifest: dict[str, Any]
  tokenizer: tokenizers.Tokenizer
  train: TokenFile
  validation: TokenFile
  folder: Path
  is_sampled: bool

  @property
  def validation_sets(self) -> dict[str, 'PackedDataset']:
    """Name -> the data of that validation split; one corpus has one."""
    return {self.manifest['corpus']['name']: self}

  @property
  def shared_text(self) -> list[str]:
    """Remarks on validation documents that are also trained on."""
    shared = self.manifest.get('overlap', {'documents': 0})  # older manifests have no comparison
    return [overlap.remark(shared['documents'], shared['of'])] if shared['documents'] else []

  @property
  def training_tokens(self) -> dict[str, int]:
    """Name of the corpus -> its number of training tokens."""
    return {self.manifest['corpus']['name']: len(self.train)}

  @property
  def identity(self) -> dict[str, Any]:
    """What must not change while a run continues; JSON-able.

    Of one corpus and rule, the sizes of the splits say where it is cut.
    """
    return {
      'corpus': self.manifest['corpus']['sha256'],
      'split': self.manifest['split']['rule'],
      'size of the splits': {split: len(getattr(self, split)) for split in SPLITS},
      'tokenizer': self.tokenizer.hash,
    }

  def bytes_per_token(self, split: str) -> float:
    """Returns the mean bytes per token: bits per byte = nats / (ln 2 * bytes), per token."""
    counts = self.manifest['splits'][split]
    return counts['bytes'] / counts['tokens']

  def check_length(self, sequence_length: int, field: str = 'data.sequence_length') -> None:
    """Raises ValueError if a split is too short for one window of T tokens and their targets."""
    for split in SPLITS:
      tokens = len(getattr(self, split))
      if tokens < sequence_length + 1:
        raise ValueError(
          f'{field}={sequence_length} needs {sequence_length + 1} tokens but the {split} split has '
          f'{tokens}; use at most {max(tokens - 1, 0)}, more text or another validation_fraction'
        )

  def check_vocabulary(self, model_vocab_size: int) -> None:
    """Raises ValueError if a token id has no row in the model's embedding."""
    if model_vocab_size < self.tokenizer.vocab_size:
      raise ValueError(
        f'model.vocab_size={model_vocab_size} leaves token ids outside the vocabulary: the '
        f'tokenizer has {self.tokenizer.vocab_size} for data.separator='
        f'{self.manifest["separator"]!r}; set model.vocab_size to at least that'
      )


def prepare_corpus(
  config: DataConfig, corpus: Corpus, whole: bool, report: Report | None, workers: int
) -> PackedDataset:
  """Returns the packed data of one corpus, tokenised first if needed; see `prepare`."""
  opened = functools.partial(open_packed, whole=whole)
  if folder := config.packed_folder:
    dataset = _open_as_it_is(config, folder, opened)
  else:
    folder = corpus_folder(config, corpus)
    scratch = folder.with_name(f'{folder.name}.parts-{parts.FORMAT}')
    made = dict(report=report, workers=workers)
    work = functools.partial(tokenise, config, corpus, scratch, **made, is_over=folder.exists)
    build = functools.partial(pack, config, corpus, parts=scratch, **made)
    dataset = cached(folder, opened, build, Shared(scratch, work))
  dataset.check_length(config.sequence_length)
  return dataset


def corpus_folder(config: DataConfig, corpus: Corpus) -> Path:
  """Returns the folder of the packed data of one corpus."""
  return config.packed_folder or config.cache_root / folder_name(config, [(config, corpus)])


def _open_as_it_is(
  config: DataConfig, folder: Path, opened: Callable[[Path], PackedDataset]
) -> PackedDataset:
  """Returns packed data that was prepared elsewhere and needs no text here.

  Raises:
    ValueError: it is missing or damaged, or was made in another way than `config` asks for.
  """
  try:
    dataset = opened(folder)
  except FileNotFoundError:
    raise ValueError(
      f'data.corpus={config.corpus!r}: no such folder; name one that crt-prepare has printed'
    ) from None
  except DamagedCache as damage:
    raise ValueError(f'data.corpus={config.corpus!r}: {damage}; {COPY_AGAIN}') from None
  manifest = dataset.manifest
  made = {
    'tokenizer': manifest['tokenizer']['name'],
    'separator': manifest['separator'],
    'split': manifest['split']['rule'],
    'validation_fraction': manifest['split']['validation_fraction'],
  }
  for name, value in made.items():
    asked = getattr(config, name)
    if asked in (value, getattr(DataConfig, name)):
      continue
    is_same = (
      name == 'tokenizer'
      and asked != 'bpe'
      and (vocabularies.make(config, iter(())).hash == dataset.tokenizer.hash)
    )
    if not is_same:
      raise ValueError(
        f'data.{name}={asked!r}, but {folder} was made with {value!r}; use that, or prepare it anew'
      )
  return dataset


def cached(
  folder: Path,
  opened: Callable[[Path], Opened],
  build: Callable[[Path], None],
  shared: Shared | None = None,
) -> Opened:
  """Returns the result of `opened` on a cache folder, which is built first if needed.

  Raises:
    ValueError: the folder cannot be written.
    OutOfReach: it cannot be read, which says nothing against it.
  """
  try:
    return open_or_build(folder, opened, build, shared)
  except storage.OutOfReach:
    raise
  except OSError as error:
    raise ValueError(
      f'data.cache_dir: cannot write {error.filename or folder} ({error.strerror}); '
      'set data.cache_dir or $CRT_JAX_CACHE to a writable folder with free space'
    ) from None


def open_packed(folder: Path, whole: bool = False) -> PackedDataset:
  """Opens packed data at its folder.

  Args:
    folder: a folder that `prepare` made.
    whole: verify every byte even of large files, whatever was verified before.

  Raises:
    FileNotFoundError: nothing is there.
    DamagedCache: it was changed, cut short, or written by another version of the format.
  """
  if not folder.is_dir():
    raise FileNotFoundError(folder)
  manifest = read_manifest(folder)
  dtype, shards = _listed(manifest)
  every = [shard for name in SPLITS for shard in shards[name]]
  digests = overlap.shards_of(manifest)
  is_asked = whole
  whole = whole or sum(shard.tokens for shard in every) * dtype.itemsize <= READ_WHOLE_BYTES

  def compare() -> None:
    verify(folder, every, dtype, whole)
    verify(folder, digests, overlap.DTYPE, whole)

  if is_asked:
    compare()
  else:
    files = [manifest_path(folder), *(folder / shard.file for shard in (*every, *digests))]
    verified.once(files, 'whole' if whole else 'samples', compare)
  tokenizer = open_tokenizer(folder / 'tokenizer')
  if tokenizer.hash != manifest['tokenizer']['hash']:
    raise DamagedCache(f'{folder / "tokenizer"} is not the tokenizer of these tokens')
  files = {
    name: TokenFile([folder / shard.file for shard in shards[name]], dtype) for name in SPLITS
  }
  return PackedDataset(
    manifest, tokenizer, files['train'], files['validation'], folder, is_sampled=not whole
  )


def damaged_files(folder: Path) -> list[str]:
  """Returns a line per damaged file of packed data; reads every byte, changes nothing.

  Raises:
    FileNotFoundError: nothing is there.
  """
  if not folder.is_dir():
    raise FileNotFoundError(folder)
  found = []
  try:
    manifest = read_manifest(folder)
    dtype, shards = _listed(manifest)
    found += [line for name in SPLITS for line in damage(folder, shards[name], dtype, whole=True)]
    found += damage(folder, overlap.shards_of(manifest), overlap.DTYPE, whole=True)
  except DamagedCache as error:
    manifest = None  # without it the shards are unknown
    found.append(str(error))
  try:
    tokenizer = open_tokenizer(folder / 'tokenizer')
    if manifest and tokenizer.hash != manifest['tokenizer']['hash']:
      found.append(f'{folder / "tokenizer"} is not the tokenizer of these tokens')
  except (FileNotFoundError, DamagedCache) as error:
    found.append(str(error))
  return found


def _listed(manifest: dict[str, Any]) -> tuple[np.dtype, dict[str, list[Shard]]]:
  """Returns the dtype of a token and the shards of each split."""
  shards = {
    name: [Shard(**shard) for shard in manifest['splits'][name]['shards']] for name in SPLITS
  }
  return np.dtype(manifest['dtype']), shards


def folder_name(config: DataConfig, corpora: Sequence[tuple[DataConfig, Corpus]]) -> str:
  """Returns the name of the cache folder of what `config` makes of some corpora."""
  decisive = [
    FORMAT_VERSION,
    *([corpus.name, corpus.fingerprint, own.text_field] for own, corpus in corpora),
    vocabularies.fingerprint(config),
    [config.separator, config.split, config.validation_fraction],
  ]
  key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode('utf-8')).hexdigest()[:16]
  readable = f'{config.corpus}-{Path(config.tokenizer).stem}'
  return ''.join(c if c.isalnum() or c in '-_.' else '_' for c in readable)[:80] + f'-{key}'
