"""Files in buckets, read as local ones; fsspec's memory stands for the bucket."""

import os

import fsspec
import pytest

from crt_jax import staging, storage
from crt_jax.data.corpora import open_corpus
from crt_jax.schema.data import resolve


@pytest.fixture
def memory(monkeypatch, tmp_path):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path))
  monkeypatch.setitem(staging.READERS, 'memory', ('fsspec', 'gcs'))
  files = fsspec.filesystem('memory')
  for name in ('one.txt', 'two.txt', 'deep/three.txt', 'notes.md'):
    files.pipe(f'/texts/{name}', f'{name}: some text'.encode())
  staging._staged.cache_clear()
  yield files
  files.rm('/texts', recursive=True)


def read(pattern):
  config = resolve({'corpus': 'files', 'files': pattern})
  return [document.text for document in open_corpus(config).documents()]


def test_globs_folders_and_lists(memory):
  assert read('memory://texts/*.txt') == ['one.txt: some text', 'two.txt: some text']
  assert len(read('memory://texts')) == 4
  assert len(read('memory://texts/**/*.txt')) == 3
  assert len(read('memory://texts/{notes.md,deep}, memory://texts/one.txt')) == 3


def test_a_copy_is_made_once_and_follows_the_bucket(memory, tmp_path):
  first = storage.local_path('data.corpus', 'memory://texts', reads=True)
  assert (first / 'deep/three.txt').read_text() == 'deep/three.txt: some text'
  created = memory.modified('/texts/one.txt').timestamp()
  assert os.stat(first / 'one.txt').st_mtime == pytest.approx(created)
  staging._staged.cache_clear()
  memory.get_file = None  # nothing is fetched again
  try:
    assert storage.local_path('data.corpus', 'memory://texts', reads=True) == first
  finally:
    del memory.get_file
  memory.pipe('/texts/one.txt', b'longer than it was before')
  staging._staged.cache_clear()
  second = storage.local_path('data.corpus', 'memory://texts', reads=True)
  assert second != first and (second / 'one.txt').read_text().startswith('longer')
  assert {p.name for p in (tmp_path / 'staged').iterdir()} == {first.name, second.name}


def test_what_is_not_there_is_one_line(memory):
  for pattern in ('memory://texts/*.csv', 'memory://nowhere/a.txt'):
    with pytest.raises(ValueError, match='^data.files=.memory://.*: nothing is there'):
      read(pattern)
  with pytest.raises(ValueError, match='only file systems'):
    storage.local_path('--output', 'memory://texts')
