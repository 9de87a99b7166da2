"""A prepared TFDS text dataset as a corpus, read without TensorFlow.

Only what lies on disk is used (`builder_from_directory`), so no dataset code runs and nothing is
downloaded, and only array_record files, the one format that reads completely without TensorFlow.
`crt_jax/data/tfds_builder.py` writes such sets.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crt_jax import storage
from crt_jax.data.documents import Corpus, Document, fingerprint
from crt_jax.schema.data import DataConfig
from crt_jax.schema.fields import near

_RECORDS_AT_ONCE = 256


def tfds_corpus(config: DataConfig) -> Corpus:
  """Returns the split 'train' (or the only split) of the dataset that `tfds:<name>` names.

  `<name>` is 'set', 'set/config', 'set:1.0.0' or 'set/config:1.0.0' under `data.tfds_dir`.

  Raises:
    ValueError: not prepared, not array_record, no such field; one line with what there is.
  """
  import tensorflow_datasets as tfds  # here, because most runs never need it

  folder = _folder(config)
  builder = tfds.builder_from_directory(folder)
  file_format = builder.info.file_format.value
  if file_format != 'array_record':
    raise ValueError(
      f'data.corpus={config.corpus!r}: {folder} is in format {file_format}, which needs TensorFlow;'
      " prepare it with file_format='array_record'"
    )
  field = config.text_field
  features = list(builder.info.features)
  if field not in features:
    raise ValueError(
      f'data.text_field={field!r} is not a feature of {config.corpus!r}{near(field, features)} '
      f'(has {", ".join(features)})'
    )
  splits = sorted(builder.info.splits)
  split = splits[0] if len(splits) == 1 else 'train'
  if split not in splits:
    raise ValueError(f'data.corpus={config.corpus!r} has no split train (has {", ".join(splits)})')

  def documents() -> Iterator[Document]:
    source: Any = builder.as_data_source(split=split)  # whose type says nothing of __getitems__
    for start in range(0, len(source), _RECORDS_AT_ONCE):
      indices = range(start, min(start + _RECORDS_AT_ONCE, len(source)))
      for index, record in zip(indices, source.__getitems__(list(indices)), strict=True):
        text = _text(record[field], f'{config.corpus}, record {index}, field {field!r}')
        if text.strip():
          yield Document.of(f'{config.corpus}, record {index}', text, config.corpus)

  files = sorted(path for path in folder.iterdir() if path.is_file())
  return Corpus(config.corpus, [builder.info.full_name, field, fingerprint(files)], documents)


def _text(value: bytes | str, place: str) -> str:
  if isinstance(value, str):
    return value
  if not isinstance(value, bytes):
    raise ValueError(f'{place} holds {type(value).__name__}, not text; set data.text_field')
  try:
    return value.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{place}: byte {error.start} is not UTF-8; write the set again') from None


def _folder(config: DataConfig) -> Path:
  """Returns the folder of the requested version (the newest if none is named)."""
  root = storage.local_path(
    'data.tfds_dir', config.tfds_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  )
  name, _, version = config.corpus.removeprefix('tfds:').partition(':')
  found = {info.parent: str(info.parent.parent.relative_to(root)) for info in _infos(root)}
  matching = [
    folder
    for folder, set_name in found.items()
    if set_name == name and version in ('', folder.name)
  ]
  if not matching:
    names = sorted({f'{set_name}:{folder.name}' for folder, set_name in found.items()})
    near_names = [*found.values(), *names]
    raise ValueError(
      f'data.corpus={config.corpus!r} is not prepared in {root}{near(name, near_names)} '
      f'(has {", ".join(names) or "nothing"}); set data.tfds_dir, or write it with '
      'crt-prepare --write_tfds=DIR'
    )
  return max(matching, key=lambda folder: _version_key(folder.name))


def _infos(root: Path) -> list[Path]:
  """Returns the descriptions of the datasets under root: set/version or set/config/version."""
  return [info for depth in ('*/*', '*/*/*') for info in root.glob(f'{depth}/dataset_info.json')]


def _version_key(version: str) -> list[tuple[bool, int, str]]:
  return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in version.split('.')]
