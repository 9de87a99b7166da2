"""The published corpora, fetched from a folder with copies: no test asks the hub itself."""

import dataclasses
import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers as hf

from crt_jax import data
from crt_jax.data import published

WORDS = {name: index for index, name in enumerate(['[UNK]', '<s>', '</s>', 'a', 'b', 'hello'])}


@pytest.fixture
def vocabulary(tmp_path, monkeypatch):
  tokenizer = hf.Tokenizer(hf.models.WordLevel(WORDS, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(['<s>', '</s>'])
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  monkeypatch.setattr(published, 'PROBE', ('hello a', [5, 3]))
  return tmp_path / 'tokenizer.json'


@pytest.fixture
def copies(tmp_path, monkeypatch):
  """Repositories of a few documents, 'a b 7' being the seventh, in parts of two documents."""
  monkeypatch.setattr(published, 'PART_DOCUMENTS', 2)
  monkeypatch.setattr(published, 'AT_ONCE', 3)
  monkeypatch.setattr(published, 'VALIDATION_BUDGET', 10)

  def write(repository, file, numbers):
    path = tmp_path / 'hub' / repository / file
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f'a b {n}' if n % 5 else ' ' for n in numbers]  # each fifth is blank
    pyarrow.parquet.write_table(pyarrow.table({'text': texts, 'id': texts}), path)

  write('roneneldan/TinyStories', 'data/train-00000-of-00002-2d5.parquet', range(1, 10))
  write('roneneldan/TinyStories', 'data/train-00001-of-00002-2d5.parquet', range(10, 20))
  write('roneneldan/TinyStories', 'data/validation-00000-of-00001-869.parquet', range(101, 110))
  for index in range(2):
    numbers = range(10 * index + 1, 10 * index + 11)
    write('wikimedia/wikipedia', f'20231101.en/train-0000{index}-of-00002.parquet', numbers)
    write('HuggingFaceFW/fineweb-edu', f'sample/10BT/00{index}_00000.parquet', numbers)
    write('Skylion007/openwebtext', f'plain_text/train-0000{index}-of-00002.parquet', numbers)
  small = dict(tinystories=dict(budget=60), wikipedia=dict(budget=1000, held_out=4))
  small['fineweb-edu'] = dict(budget=1000, held_out=published.Fraction(1, 2))
  for name, changes in small.items():
    changed = dataclasses.replace(published.PUBLISHED[name], **changes)
    monkeypatch.setitem(published.PUBLISHED, name, changed)
  return published.Copies(tmp_path / 'hub')


def fetch(name, source, tmp_path, vocabulary):
  return published.fetch(name, source, tmp_path / 'corpora', vocabulary, lambda *_: None)


def numbers_of(folder, split):
  """The documents of a split, by their numbers, in order."""
  files = sorted(folder.glob(f'{split}-*.jsonl.gz'))
  lines = [line for file in files for line in gzip.open(file, 'rt', encoding='utf-8')]
  return [int(json.loads(line)['text'].split()[-1]) for line in lines]


def test_the_first_tokens_in_order_and_a_validation_split_of_its_own(copies, tmp_path, vocabulary):
  record = fetch('tinystories', copies, tmp_path, vocabulary)
  folder = tmp_path / 'corpora' / 'tiny'
  # Five tokens a document with its start and end: the twelfth fills the 60, blank ones left out.
  assert numbers_of(folder, 'train') == [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]
  assert numbers_of(folder, 'validation') == [101, 102]
  assert sum(part['tokens'] for part in record['splits']['train']['parts']) == 60
  assert len(list(folder.glob('train-*'))) == 6 and record['commit'] == 'f54c09fd'


def test_the_end_of_the_last_file_is_held_out(copies, tmp_path, vocabulary):
  folder = tmp_path / 'corpora'
  fetch('wikipedia', copies, tmp_path, vocabulary)
  assert numbers_of(folder / 'wiki', 'train')[-2:] == [14, 16]
  assert numbers_of(folder / 'wiki', 'validation') == [17, 18]
  fetch('fineweb-edu', copies, tmp_path, vocabulary)
  held_out = [16, 17, 18, 19]
  random.Random(42).shuffle(held_out)
  assert numbers_of(folder / 'edu', 'validation') == held_out[:2]
  fetch('openwebtext', copies, tmp_path, None)
  assert numbers_of(folder / 'openwebtext', 'train') == [n for n in range(1, 21) if n % 5]
  assert not list((folder / 'openwebtext').glob('validation*'))


class Broken(Exception):
  """A download that was cut off."""


def test_it_goes_on_where_it_was_stopped_and_mends_what_is_damaged(copies, tmp_path, vocabulary):
  fetch('tinystories', copies, tmp_path / 'whole', vocabulary)
  whole = {p.name: p.read_bytes() for p in (tmp_path / 'whole' / 'corpora' / 'tiny').iterdir()}
  folder, read = tmp_path / 'corpora' / 'tiny', []

  class Logged(published.Copies):
    def path(self, repository, commit, file, kind='dataset'):
      read.append(file)
      return super().path(repository, commit, file, kind)

  class Breaking(Logged):
    def path(self, repository, commit, file, kind='dataset'):
      if 'train-00001' in file:
        raise Broken
      return super().path(repository, commit, file, kind)

  with pytest.raises(Broken):
    fetch('tinystories', Breaking(copies.root), tmp_path, vocabulary)
  before = len(list(folder.glob('train-*')))
  assert 0 < before < 6
  fetch('tinystories', Logged(copies.root), tmp_path, vocabulary)
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == whole

  (folder / 'train-00005.jsonl.gz').write_bytes(b'damaged')
  read.clear()
  fetch('tinystories', Logged(copies.root), tmp_path, vocabulary)
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == whole
  assert read and not any('train-00000' in file for file in read)  # nor what lies before it
  read.clear()
  fetch('tinystories', Logged(copies.root), tmp_path, vocabulary)
  assert not read


def test_another_revision_is_not_mixed_in(copies, tmp_path, vocabulary, monkeypatch):
  fetch('tinystories', copies, tmp_path, vocabulary)
  monkeypatch.setattr(published.Copies, 'commit', lambda *_: 'abc')
  with pytest.raises(ValueError, match='holds documents of another commit .*choose another --outp'):
    fetch('tinystories', copies, tmp_path, vocabulary)


def test_a_repository_that_looks_otherwise_says_what_it_has(copies, tmp_path):
  for file in list((copies.root / 'Skylion007/openwebtext/plain_text').iterdir()):
    file.rename(file.with_suffix('.tar'))
  with pytest.raises(ValueError, match=r'has no plain_text/train-.* \(has plain_text'):
    fetch('openwebtext', copies, tmp_path, None)


def test_only_the_vocabulary_of_llama_2_is_taken(copies, tmp_path, vocabulary, monkeypatch):
  taken = published.fetch_vocabulary(copies, str(vocabulary), tmp_path / 'corpora')
  assert taken == tmp_path / 'corpora' / 'llama2' / 'tokenizer.json'
  assert taken.read_bytes() == vocabulary.read_bytes()
  with pytest.raises(ValueError, match='has no TinyLlama/.*/tokenizer.json; copy it from the hub'):
    published.fetch_vocabulary(copies, published.OPEN_TWIN, tmp_path / 'other')
  monkeypatch.setattr(published, 'PROBE', ('hello a', [1, 2]))
  with pytest.raises(ValueError, match=r"reads 'hello a' as \[5, 3\], not \[1, 2\]"):
    published.fetch_vocabulary(copies, str(vocabulary), tmp_path / 'other')


def test_the_configs_read_what_was_fetched(copies, tmp_path, vocabulary, monkeypatch):
  from crt_jax.cli import config_files

  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path / 'cache'))
  published.fetch_vocabulary(copies, str(vocabulary), tmp_path / 'corpora')
  for name in published.PUBLISHED:
    fetch(name, copies, tmp_path, vocabulary)
  config = config_files.load('configs/cart_d1024.py:data=published').data.unlock()
  config.update(sequence_length=4, chunk_tokens=2)
  dataset = data.prepare(config)
  assert list(dataset.validation_sets) == ['tiny', 'wiki', 'edu']
  assert dataset.training_tokens == {'tiny': 42, 'wiki': 42, 'edu': 56}  # seven periods
  data.check_present(config_files.load('configs/crt_341m.py').data)
