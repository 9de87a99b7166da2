import json
import os
import subprocess
import sys

import pytest

from crt_jax import data
from crt_jax.data import corpora, documents
from crt_jax.data.tfds_builder import write_tfds


def open_corpus(**fields):
  return corpora.open_corpus(data.resolve(fields))


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """(folder of a TFDS set, the documents in it)."""
  folder = tmp_path_factory.mktemp('tfds')
  texts = [f'document {index}: naïve “text”\r\n' * (index + 1) for index in range(20)]
  for index, text in enumerate(texts):
    (folder / f'{index:02d}.txt').write_text(text, 'utf-8', newline='')
  config = {'corpus': 'files', 'files': str(folder / '*.txt')}
  assert write_tfds(config, folder / 'sets') == 'tfds:raw_text/files'
  return folder / 'sets', texts, config


def test_a_written_set_reads_back_as_the_same_corpus(prepared):
  folder, texts, config = prepared
  corpus = open_corpus(corpus='tfds:raw_text/files', tfds_dir=str(folder))
  assert [document.text for document in corpus.documents()] == texts
  assert documents.survey(corpus) == documents.survey(open_corpus(**config))
  versioned = open_corpus(corpus='tfds:raw_text/files:1.0.0', tfds_dir=str(folder))
  assert versioned.fingerprint == corpus.fingerprint


def test_reading_and_packing_a_set_never_imports_tensorflow(prepared, tmp_path):
  folder, _, _ = prepared
  program = f"""
import sys
from crt_jax import data
config = dict(corpus='tfds:raw_text/files', cache_dir={str(tmp_path)!r}, sequence_length=8)
assert data.prepare({{**config, 'tfds_dir': {str(folder)!r}}}).manifest['corpus']['documents'] == 20
assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', program], check=True, env={**os.environ, 'PYTHONPATH': '.'})


def test_an_unprepared_set_names_what_there_is(prepared):
  folder, _, _ = prepared
  with pytest.raises(ValueError, match="did you mean 'raw_text/files'.*has raw_text/files:1.0.0"):
    open_corpus(corpus='tfds:raw_text/file', tfds_dir=str(folder))
  with pytest.raises(ValueError, match='is not prepared in .*has nothing'):
    open_corpus(corpus='tfds:lm1b', tfds_dir=str(folder / 'nowhere'))


def test_a_wrong_field_names_the_near_one(prepared):
  folder, _, _ = prepared
  with pytest.raises(ValueError, match="data.text_field='texts' .*did you mean 'text'"):
    open_corpus(corpus='tfds:raw_text/files', tfds_dir=str(folder), text_field='texts')


def test_other_file_formats_are_refused(prepared, tmp_path):
  folder, _, _ = prepared
  copied = tmp_path / 'raw_text' / 'files' / '1.0.0'
  copied.mkdir(parents=True)
  for name in ('dataset_info.json', 'features.json'):
    (copied / name).write_bytes((folder / 'raw_text/files/1.0.0' / name).read_bytes())
  info = json.loads((copied / 'dataset_info.json').read_text())
  (copied / 'dataset_info.json').write_text(json.dumps({**info, 'fileFormat': 'tfrecord'}))
  with pytest.raises(ValueError, match='is in format tfrecord'):
    open_corpus(corpus='tfds:raw_text/files', tfds_dir=str(tmp_path))


def test_a_set_is_not_overwritten(prepared):
  folder, _, config = prepared
  with pytest.raises(ValueError, match='already there'):
    write_tfds(config, folder)


def test_a_mixture_or_a_validation_set_is_no_tfds_set(prepared, tmp_path):
  _, _, config = prepared
  mixture = {
    'corpus': 'mixture',
    'files': '',
    'sources': {'a': {'corpus': 'sotu'}},
    'interleave': 'a:1',
  }
  for fields in (mixture, {'validation_files': '/elsewhere/*.txt'}):
    with pytest.raises(ValueError, match='a TFDS set holds one corpus without'):
      write_tfds({**config, **fields}, tmp_path / 'sets')
  assert not (tmp_path / 'sets').exists()
