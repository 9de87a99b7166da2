"""Files in buckets, read as local ones: fsspec's memory stands for the bucket, or a server of this
machine for Amazon's storage (`make test-bucket`)."""

import os

import fsspec
import pytest

from crt_jax import data, staging, storage
from crt_jax.data.corpora import open_corpus
from crt_jax.schema.data import resolve
from tests.end_to_end import gcs_server


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


@pytest.fixture
def amazon(monkeypatch, tmp_path):
  """Makes the client of a bucket `texts` with two files, as one that knows nothing of it yet."""
  pytest.importorskip('s3fs', reason="pip install -e '.[s3]'")
  moto = pytest.importorskip('moto.server', reason='no server: make test-bucket has one')
  server = moto.ThreadedMotoServer('127.0.0.1', 0)
  server.start()
  host, port = server.get_host_and_port()
  for name, value in dict(
    AWS_ENDPOINT_URL=f'http://{host}:{port}',
    AWS_DEFAULT_REGION='us-east-1',
    AWS_ACCESS_KEY_ID='any',
    AWS_SECRET_ACCESS_KEY='any',
    CRT_JAX_CACHE=str(tmp_path),
  ).items():
    monkeypatch.setenv(name, value)

  def anew():
    staging._staged.cache_clear()
    fsspec.get_filesystem_class('s3').clear_instance_cache()
    return fsspec.filesystem('s3')

  files = anew()
  files.makedirs('texts', exist_ok=True)  # moto's buckets outlive its server
  files.pipe('texts/a.txt', b'A text to be learnt. ' * 40)
  files.pipe('texts/of/b.txt', b'Another one of these. ' * 40)
  yield anew
  server.stop()
  anew()


def test_texts_tokenizers_and_prepared_corpora_of_amazon(amazon):
  assert len(read('s3://texts')) == 2 and len(read('s3://texts/*.txt')) == 1
  amazon().pipe('texts/a.txt', b'A text of the same size'.ljust(21 * 40))
  files = amazon()
  assert read('s3://texts/*.txt')[0].startswith('A text of the same size')
  config = dict(corpus='files', files='s3://texts/**/*.txt', tokenizer='bpe', vocab_size=260)
  config |= dict(sequence_length=16, validation_fraction=0.5)
  prepared = data.prepare(config)
  files.put(str(prepared.folder), 'texts/prepared', recursive=True)
  for changes in (
    {'tokenizer': 's3://texts/prepared/tokenizer'},
    {'corpus': 'packed:s3://texts/prepared', 'files': ''},
  ):
    again = data.prepare(config | changes)
    assert again.folder != prepared.folder and again.identity == prepared.identity


def test_what_amazon_refuses_is_one_line_and_another_region_is_followed(amazon, monkeypatch):
  with pytest.raises(ValueError, match="^data.files='s3://nowhere/a.txt': nothing is there"):
    read('s3://nowhere/a.txt')
  address = os.environ['AWS_ENDPOINT_URL'].removeprefix('http://')

  def elsewhere(handler):
    if '/eu-west-1/' not in handler.headers['Authorization']:
      return gcs_server.send(handler, 301, {'x-amz-bucket-region': 'eu-west-1'}, b'')
    response, content = gcs_server.forwarded(handler, address, b'')
    gcs_server.send(handler, *response, content)

  for server, line in (
    (gcs_server.answered(elsewhere), None),
    (gcs_server.refusing(403, 'Access Denied'), r'cannot be read \((Access Denied|Forbidden)\)'),
  ):
    with server as variables:
      monkeypatch.setenv('AWS_ENDPOINT_URL', variables['STORAGE_EMULATOR_HOST'])
      amazon()
      if line is None:
        assert read('s3://texts/*.txt')
        continue
      with pytest.raises(ValueError, match=f"^data.files='s3://texts/a.txt' {line}"):
        read('s3://texts/a.txt')
