"""`config.data` checked and completed: every field, its default, and what a wrong value gives.

A field that is missing takes the default below; an unknown field, a wrong type or an unknown name
is refused in one line with the nearest correct name.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

CORPORA = ('moby_dick', 'sotu', 'files', 'tfds:<name>')
MIXTURE = 'mixture'
TASK = 'pointer_chasing'
TOKENIZERS = ('bytes', 'bpe', 'gpt2', 'gpt2:DIR')


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One corpus of a mixture; what is not here holds for all of them and stands in DataConfig."""

  corpus: str = 'files'  # as in DataConfig, except 'mixture'
  files: str = ''
  validation_files: str = ''
  text_field: str = 'text'
  max_tokens: int = 0  # of its training split that the mixture uses; 0 = all


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the text comes from, how it is tokenised and split, and how windows are drawn from it."""

  corpus: str = 'moby_dick'  # of CORPORA, 'mixture' or 'pointer_chasing:levels=3,keys=5'
  files: str = ''  # glob of .txt and .jsonl files, plain or .gz; for corpus='files'
  validation_files: str = ''  # glob of the validation split; '' = it is split off from `files`
  text_field: str = 'text'  # field of .jsonl lines and of TFDS features
  sources: dict = dataclasses.field(default_factory=dict)  # name -> SourceConfig, of a mixture
  interleave: str = ''  # the pattern that a mixture repeats: 'name:chunks, name:chunks, ...'
  chunk_tokens: int = 1024  # of a mixture
  tfds_dir: str = ''  # where prepared TFDS sets lie; '' = TFDS's default
  tokenizer: str = 'bytes'  # 'bytes' | 'bpe' | 'gpt2' | 'gpt2:DIR' | path of a tokenizer.json
  vocab_size: int = (
    256  # tokens of a trained BPE, special tokens included; others have their own size
  )
  bpe_recipe: str = 'default'  # 'default' | 'crt' (the CRT paper's: NFKC, <pad>, <unk>)
  bpe_documents: int = 0  # train the BPE on the first N documents; 0 = all (the CRT paper: 100 000)
  separator: str = 'none'  # between documents: 'none' | 'eos' | 'bos_eos'
  split: str = 'auto'  # 'auto' | 'document_hash' | 'contiguous'
  validation_fraction: float = 0.1  # share of the documents, or of the token stream
  sequence_length: int = 256  # T, tokens a model sees at once
  batch_size: int = 16  # B, rows of the global batch
  sampling: str = 'shuffled'  # 'shuffled' | 'random_offsets' | 'in_order'
  cache_dir: str = ''  # '' = $CRT_JAX_CACHE or ~/.cache/crt_jax

  @property
  def cache_root(self) -> Path:
    """The folder that holds all packed data of this user."""
    root = self.cache_dir or os.environ.get('CRT_JAX_CACHE') or '~/.cache/crt_jax'
    return expanded('data.cache_dir', root).absolute()

  @property
  def pattern(self) -> dict[str, int]:
    """Chunks of each source in one period of a mixture, in order; from `interleave`."""
    entries = [entry.strip().partition(':') for entry in self.interleave.split(',')]
    return {name: int(chunks) for name, _, chunks in entries}

  def of_source(self, name: str) -> 'DataConfig':
    """The configuration of one corpus of a mixture, as if it were alone."""
    fields = dataclasses.asdict(self.sources[name])
    fields.pop('max_tokens')
    return dataclasses.replace(self, sources={}, interleave='', **fields)


_CHOICES = {
  'bpe_recipe': ('default', 'crt'),
  'separator': ('none', 'eos', 'bos_eos'),
  'split': ('auto', 'document_hash', 'contiguous'),
  'sampling': ('shuffled', 'random_offsets', 'in_order'),
}
_AT_LEAST = {
  'vocab_size': 1,
  'bpe_documents': 0,
  'sequence_length': 1,
  'batch_size': 1,
  'chunk_tokens': 1,
}

Fields = TypeVar('Fields', SourceConfig, DataConfig)


def near(word: str, known: Iterable[str]) -> str:
  """' Did you mean ...?' for the nearest of the known words, or nothing."""
  match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
  return f'; did you mean {match[0]!r}?' if match else ''


def expanded(field: str, name: str) -> Path:
  """The path of a name that may begin with ~. Raises ValueError, naming the field, where this
  machine knows no such home directory."""
  try:
    return Path(name).expanduser()
  except RuntimeError:
    raise ValueError(
      f'{field}={name!r}: there is no home directory here; set {field} to a whole path'
    ) from None


def resolve(config: DataConfig | Mapping[str, Any]) -> DataConfig:
  """The complete, checked configuration.

  Args:
    config: `config.data` (an ml_collections ConfigDict), any mapping, or a DataConfig.

  Raises:
    ValueError: one line that names the field, what is wrong with it, and what to write instead.
  """
  resolved = _filled(DataConfig, config, 'data')
  for name, choices in _CHOICES.items():
    value = getattr(resolved, name)
    if value not in choices:
      raise ValueError(
        f'data.{name}={value!r} is unknown{near(value, choices)} (one of {", ".join(choices)})'
      )
  for name, least in _AT_LEAST.items():
    if getattr(resolved, name) < least:
      raise ValueError(f'data.{name}={getattr(resolved, name)} must be at least {least}')
  if not 0 < resolved.validation_fraction < 1:
    raise ValueError(
      f'data.validation_fraction={resolved.validation_fraction} must lie between 0 and 1, as 0.1'
    )
  if resolved.corpus == MIXTURE:
    _check_mixture(resolved)
  else:
    _check_corpus(resolved, 'data', (*CORPORA, MIXTURE, TASK))
  _check_unread(resolved, 'data')
  if resolved.validation_files and resolved.split != 'auto':
    raise ValueError(
      f'data.split={resolved.split!r} splits nothing off where data.validation_files is set; '
      "use data.split='auto'"
    )
  _check_tokenizer(resolved)
  return resolved


def _filled(cls: type[Fields], config: Fields | Mapping[str, Any], section: str) -> Fields:
  """A section of the configuration from its given fields, each of the right type."""
  given = vars(config) if isinstance(config, cls) else config
  fields = {field.name: field for field in dataclasses.fields(cls)}
  values = {}
  for name in given:
    if name not in fields:
      raise ValueError(f'{section}.{name} is not a field of config.{section}{near(name, fields)}')
    values[name] = _typed(f'{section}.{name}', given[name], fields[name].type)
  return cls(**values)


def _typed(name: str, value: Any, kind: type) -> Any:
  if kind is dict:
    if not hasattr(value, 'keys'):
      raise ValueError(f'{name}={value!r} must be a mapping of names to sections')
    return {key: _filled(SourceConfig, value[key], f'{name}.{key}') for key in value}
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or isinstance(value, bool):
    raise ValueError(f'{name}={value!r} must be {kind.__name__}, not {type(value).__name__}')
  return value


def _check_corpus(config: SourceConfig | DataConfig, section: str, choices: Iterable[str]) -> None:
  corpus = config.corpus
  is_task = choices is not CORPORA and corpus.partition(':')[0] == TASK
  is_tfds = corpus.startswith('tfds:') and corpus != 'tfds:'
  known = corpus in CORPORA[:3] or is_tfds or is_task
  if not known:
    raise ValueError(
      f'{section}.corpus={corpus!r} is unknown{near(corpus, choices)} (one of {", ".join(choices)})'
    )
  if corpus == 'files' and not config.files:
    raise ValueError(
      f"{section}.files is empty but {section}.corpus='files'; set it to a glob such as "
      "'/texts/*.txt'"
    )


def _check_unread(config: SourceConfig | DataConfig, section: str) -> None:
  """Raises ValueError where a field is set that nothing reads: the text would be another."""
  readers = {'files': ('files',), 'validation_files': ('files',), 'text_field': ('files', 'tfds')}
  sources = getattr(config, 'sources', {})
  corpora = [source.corpus for source in sources.values()] or [config.corpus]
  for name, kinds in readers.items():
    _refuse_unread(config, section, name, kinds, [config.corpus])
  if isinstance(config, DataConfig):
    _refuse_unread(config, section, 'tfds_dir', ('tfds',), corpora)


def _refuse_unread(
  config: SourceConfig | DataConfig, section: str, name: str, kinds: tuple, corpora: list[str]
) -> None:
  value, default = getattr(config, name), getattr(type(config), name)
  if value == default or any(corpus.partition(':')[0] in kinds for corpus in corpora):
    return
  place = f'{section}.sources.NAME' if config.corpus == MIXTURE else section
  raise ValueError(
    f'{section}.{name}={value!r} is read only where {place}.corpus is '
    f'{" or ".join(map(repr, kinds))}, and {section}.corpus={config.corpus!r}; '
    f'set {place}.corpus, or {section}.{name}={default!r}'
  )


def _check_mixture(config: DataConfig) -> None:
  if not config.sources:
    raise ValueError("data.sources is empty but data.corpus='mixture'; name at least one corpus")
  given = [entry.strip() for entry in config.interleave.split(',')]
  for entry in given:
    if not re.fullmatch(r'\w+:[1-9]\d*', entry):
      raise ValueError(
        f"data.interleave entry {entry!r} must read 'name:chunks', as in 'tiny:3, wiki:3, edu:4'"
      )
  named, sources = [entry.partition(':')[0] for entry in given], list(config.sources)
  for name in named:
    if name not in sources:
      raise ValueError(
        f'data.interleave names {name!r}, which is no source{near(name, sources)} '
        f'(there are {", ".join(sources)})'
      )
  if sorted(named) != sorted(sources):
    raise ValueError(
      f'data.interleave={config.interleave!r} must name each of {", ".join(sources)} once; '
      'give the others chunks, or take them out of data.sources'
    )
  for name, source in config.sources.items():
    _check_corpus(source, f'data.sources.{name}', CORPORA)
    _check_unread(source, f'data.sources.{name}')
    if source.max_tokens < 0:
      raise ValueError(
        f'data.sources.{name}.max_tokens={source.max_tokens} must be 0 (all) or more'
      )


def _check_tokenizer(config: DataConfig) -> None:
  name = config.tokenizer
  if name in TOKENIZERS[:3] or name.startswith('gpt2:'):
    return
  if not expanded('data.tokenizer', name).is_file():
    raise ValueError(
      f'data.tokenizer={name!r} is neither a file nor one of {", ".join(TOKENIZERS)}'
      f'{near(name, TOKENIZERS[:3])}'
    )
