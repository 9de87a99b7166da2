"""Validation text that is trained on too: refused by what files are, counted by documents."""

import gzip
import json
import os

import numpy as np
import pytest

from crt_jax import data
from crt_jax.cluster import agreement
from crt_jax.data import overlap
from crt_jax.data.manifest import read_manifest, write_manifest
from tests.data.conftest import make_text

TEXTS = [make_text(seed, 60) for seed in range(6)]


def link(source, target):
  os.link(source, target)


def symlink(source, target):
  target.symlink_to(source)


def copy(source, target):
  target.write_bytes(source.read_bytes())


def packed_copy(source, target):
  target.with_name(target.name + '.gz').write_bytes(gzip.compress(source.read_bytes()))


def as_json(source, target):
  """The same text in a file of another kind."""
  target.with_suffix('.jsonl').write_text(json.dumps({'text': source.read_text()}))


WAYS = (link, symlink, copy, packed_copy, as_json)


@pytest.fixture
def texts(tmp_path):
  """A folder of training texts and an empty one for validation texts; the config of both."""
  for folder in ('train', 'held'):
    (tmp_path / folder).mkdir()
  for number, text in enumerate(TEXTS):
    (tmp_path / 'train' / f'{number}.txt').write_text(text)
  config = dict(corpus='files', files=f'{tmp_path}/train/*', sequence_length=16, batch_size=4)
  config |= dict(validation_files=f'{tmp_path}/held/*', cache_dir=str(tmp_path / 'cache'))
  return tmp_path, config


def refused(config, *words):
  with pytest.raises(ValueError) as error:
    data.prepare(config)
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize('way', WAYS)
def test_a_training_file_is_no_validation_file(texts, way):
  root, config = texts
  way(root / 'train/3.txt', root / 'held/other.txt')
  (root / 'held/own.txt').write_text(make_text(99, 60))
  refused(config, 'train/3.txt')
  assert not (root / 'cache').exists() or not list((root / 'cache').glob('files-*/manifest.json'))


def test_it_does_not_matter_how_the_path_is_written(texts):
  root, config = texts
  (root / 'link').symlink_to(root / 'train')
  for pattern in (f'{root}/train/./3.txt', f'{root}/held/../train/3.txt', f'{root}/link/3.txt'):
    refused({**config, 'validation_files': pattern}, 'train/3.txt', 'make one of them narrower')


@pytest.mark.parametrize('way', WAYS)
def test_a_file_twice_is_not_cut_into_training_and_validation(texts, way):
  """Of a few files the end is held out: here a copy of one that is trained on."""
  root, config = texts
  way(root / 'train/2.txt', root / 'train/9.txt')
  refused({**config, 'validation_files': ''}, 'train/2.txt', 'train/9.')


def test_copies_far_from_the_cut_or_on_one_side_are_repeated_text(texts):
  root, config = texts
  copy(root / 'train/1.txt', root / 'train/0.txt')
  dataset = data.prepare({**config, 'validation_files': ''})
  assert dataset.manifest['split']['rule'] == 'contiguous' and dataset.shared_text == []
  for number in range(10, 20):
    (root / 'train' / f'{number}.txt').write_text(make_text(number, 60))
  dataset = data.prepare({**config, 'validation_files': ''})
  assert dataset.manifest['split']['rule'] == 'document_hash' and dataset.shared_text == []


def jsonl(path, texts):
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))


def refuse(*_, **__):
  raise AssertionError('packed again')


def test_single_documents_are_counted_and_said(texts, monkeypatch):
  root, config = texts
  jsonl(root / 'held/v.jsonl', [make_text(50, 60), TEXTS[1], make_text(51, 60), TEXTS[4]])
  said = ['2 of 4 validation documents are trained on too']
  assert data.prepare(config).shared_text == said
  monkeypatch.setattr('crt_jax.data.token_dataset.pack', refuse)  # the cache says it too
  dataset = data.prepare(config)
  model = type('Model', (), {'vocab_size': 256})
  assert dataset.shared_text == dataset.remarks(model) == said


def test_validation_text_that_is_all_trained_on_is_refused(texts):
  root, config = texts
  jsonl(root / 'held/v.jsonl', TEXTS[2:4])
  refused(config, 'each of the 2 validation documents is trained on too')


def test_documents_on_both_sides_of_a_cut_are_counted(texts):
  root, config = texts
  for path in (root / 'train').iterdir():
    path.unlink()
  new = [make_text(seed, 60) for seed in range(60, 70)]
  jsonl(root / 'train/a.jsonl', [*TEXTS, *new[:4], TEXTS[0], new[5], new[5]])
  config |= {'validation_files': '', 'split': 'contiguous', 'validation_fraction': 0.2}
  # 13 documents of about the same size: the cut goes through the eleventh, a copy of the first.
  dataset = data.prepare(config)
  assert dataset.manifest['overlap']['of'] == 3
  assert dataset.shared_text == ['1 of 3 validation documents are trained on too']


def test_counts_by_a_cut_are_those_of_a_slow_count():
  draw = np.random.default_rng(0)
  for _ in range(50):
    bits, sizes = draw.integers(0, 6, 8).astype(np.uint64), draw.integers(1, 5, 8)
    listing = overlap.Listing(bits, sizes, np.zeros(8, bool), np.arange(8), list('abcdefgh'))
    held_out = int(draw.integers(1, sizes.sum()))
    sides = overlap.by_cut(listing, held_out)
    owner = np.repeat(np.arange(8), sizes)
    trained, validated = set(owner[:-held_out]), set(owner[-held_out:])
    assert set(np.flatnonzero(sides.train_N)) == trained
    assert set(np.flatnonzero(sides.validation_N)) == validated
    found = overlap._elsewhere(bits, sides.train_N, sides.validation_N)
    for one in range(8):
      twins = [other for other in trained if other != one and bits[other] == bits[one]]
      assert found[one] == (one in validated and bool(twins))


@pytest.fixture
def mixture(texts):
  """Two sources, of which the second has validation files."""
  root, config = texts
  (root / 'b').mkdir()
  (root / 'b/0.txt').write_text(make_text(80, 200))
  (root / 'held/own.txt').write_text(make_text(99, 60))
  sources = {
    'a': {'files': f'{root}/train/*', 'validation_files': f'{root}/own/*'},
    'b': {'files': f'{root}/b/*', 'validation_files': f'{root}/held/*'},
  }
  (root / 'own').mkdir()
  (root / 'own/0.txt').write_text(make_text(98, 60))
  config = {**config, 'corpus': 'mixture', 'files': '', 'validation_files': ''}
  return root, config | dict(sources=sources, interleave='a:1, b:1', chunk_tokens=32)


@pytest.mark.parametrize('way', WAYS)
def test_a_source_does_not_train_on_the_validation_files_of_another(mixture, way):
  root, config = mixture
  assert data.prepare(config).shared_text == []
  way(root / 'train/3.txt', root / 'held/other.txt')
  refused(config, 'data.sources.b: ' if way not in (link, symlink) else 'train/3.txt')


def test_documents_that_another_source_trains_on_are_counted(mixture):
  root, config = mixture
  jsonl(root / 'held/v.jsonl', [make_text(50, 60), TEXTS[1]])
  said = ['b: 1 of 3 validation documents are trained on too, in a']
  assert data.prepare(config).shared_text == data.prepare(config).shared_text == said


def test_one_corpus_twice_in_a_mixture_is_cut_alike(mixture):
  """No document of either's validation text is trained on in the other; else it is refused."""
  _, config = mixture
  config['sources'] = {'a': {'corpus': 'moby_dick'}, 'b': {'corpus': 'moby_dick'}}
  assert data.prepare(config).shared_text == []


def test_a_novel_that_another_source_holds_whole_is_refused(mixture):
  root, config = mixture
  config['sources']['a'] = {'files': f'{root}/train/0.txt'}  # its end is held out
  copy(root / 'train/0.txt', root / 'b/1.txt')  # where it is trained on to the end
  refused(config, 'data.sources.a: 1 of its 1 validation documents')


def test_an_older_cache_says_nothing(texts):
  root, config = texts
  jsonl(root / 'held/v.jsonl', [make_text(50, 60), TEXTS[1]])
  dataset = data.prepare(config)
  manifest = read_manifest(dataset.folder)
  del manifest['overlap'], manifest['format_version']
  write_manifest(dataset.folder, manifest)
  older = data.prepare(config)
  assert 'overlap' not in older.manifest and older.shared_text == []
  assert agreement.data_identity(older) == agreement.data_identity(dataset)  # goes on beside it


def test_damaged_digests_are_found(texts):
  root, config = texts
  (root / 'held/own.txt').write_text(make_text(99, 60))
  path = data.prepare(config).folder / 'train-documents.bin'
  intact = path.read_bytes()
  path.write_bytes(intact[:-1] + b'\xff')
  with pytest.raises(
    data.token_dataset.DamagedCache, match='train-documents.bin has other contents'
  ):
    data.open_packed(path.parent)
