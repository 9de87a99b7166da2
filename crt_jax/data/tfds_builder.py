"""A TFDS builder that writes a raw corpus as array_record, without TensorFlow.

One record is one document (`text`, `name`), in the order of the corpus. Read it back with
`data.corpus='tfds:raw_text/<corpus>'` and `data.tfds_dir`, or with `tfds.data_source`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from crt_jax import storage
from crt_jax.data.corpora import open_corpus
from crt_jax.data.documents import Corpus
from crt_jax.schema.data import MIXTURE, resolve


class CorpusConfig(tfds.core.BuilderConfig):
  """A builder config that carries the corpus to write; only its name is stored."""

  def __init__(self, corpus: Corpus, **kwargs: Any):
    super().__init__(**kwargs)
    self.corpus = corpus


class RawText(tfds.core.GeneratorBasedBuilder):
  """Documents as they are: no cleaning, no tokens."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'One record per document.'}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description='The documents of one corpus of crt_jax, unchanged.',
      features=tfds.features.FeaturesDict(
        {'text': tfds.features.Text(), 'name': tfds.features.Text()}
      ),
      supervised_keys=None,
      disable_shuffling=True,  # keeps the order of the documents
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    return {'train': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, str]]]:
    for index, document in enumerate(self.builder_config.corpus.documents()):
      yield index, {'text': document.text, 'name': document.name}


def write_tfds(config: Any, folder: str | Path) -> str:
  """Writes the corpus that `config` names as `folder/raw_text/<corpus>/1.0.0`.

  Args:
    config: `config.data`.
    folder: the TFDS data directory.

  Returns:
    The value of `data.corpus` that reads it back.

  Raises:
    ValueError: the corpus is missing, unreadable, empty or a mixture, or the set is already there.
  """
  resolved = resolve(config)
  if resolved.corpus == MIXTURE or resolved.validation_files:
    raise ValueError(
      'a TFDS set holds one corpus without a validation set; write each with data.corpus and '
      "data.validation_files=''"
    )
  corpus = open_corpus(resolved)
  name = ''.join(c if c.isalnum() else '_' for c in corpus.name)
  builder = RawText(
    data_dir=str(storage.local_path('--write_tfds', folder)),
    config=CorpusConfig(corpus, name=name),
    file_format='array_record',  # the default, tfrecord, fails without TensorFlow when all is done
  )
  if builder.data_path.exists():
    raise ValueError(f'{builder.data_path} is already there; remove it, or choose another folder')
  if next(corpus.documents(), None) is None:
    raise ValueError(f'data.corpus={corpus.name!r} holds no text; choose other files')
  tfds.disable_progress_bar()
  builder.download_and_prepare()
  return f'tfds:raw_text/{name}'
