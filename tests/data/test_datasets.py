"""`prepare` of a mixture: each source packed for itself, one tokenizer, one stream."""

import json
import types

import numpy as np
import pytest

from crt_jax import data
from crt_jax.data import datasets, tokenizers
from tests.data.conftest import make_text

CHUNK = 20


@pytest.fixture
def mixture(tmp_path, folder_of):
  """config.data of two sources, 'a' of 30 documents and 'b' of 15 others; keywords override."""
  sources = {
    'b': {'files': folder_of([make_text(seed, 60) for seed in range(50, 65)], 'b')},
    'a': {'files': folder_of([make_text(seed, 60) for seed in range(30)], 'a')},
  }
  return lambda **fields: {
    'corpus': 'mixture',
    'sources': sources,
    'interleave': 'a:2, b:1',
    'chunk_tokens': CHUNK,
    'sequence_length': 10,
    'batch_size': 4,
    'sampling': 'in_order',
    'cache_dir': str(tmp_path / 'cache'),
    **fields,
  }


def test_the_stream_is_the_sources_train_splits_in_the_order_of_the_pattern(mixture):
  config = mixture()
  dataset = data.prepare(config)
  assert list(dataset.sources) == ['a', 'b']
  alone = {
    name: data.prepare({**config, 'corpus': 'files', **config['sources'][name]}) for name in 'ab'
  }
  for name, source in dataset.sources.items():
    assert source.folder == alone[name].folder  # the same packed data, not a copy
  a, b = (alone[name].train for name in 'ab')
  expected = np.concatenate([a[:40], b[:20], a[40:80], b[20:40]])
  np.testing.assert_array_equal(dataset.train[:120], expected)
  assert len(dataset.train) == min(len(a) // 40, len(b) // 20) * 60
  batch = data.train_batches(dataset, config, seed=1)[1]
  np.testing.assert_array_equal(batch['tokens'].reshape(-1), dataset.train[40:80])
  np.testing.assert_array_equal(batch['targets'].reshape(-1), dataset.train[41:81])


@pytest.mark.parametrize('sampling', ['shuffled', 'random_offsets'])
def test_any_rule_draws_from_a_mixture(mixture, sampling):
  config = mixture(sampling=sampling)
  dataset = data.prepare(config)
  stream = dataset.train[:].tobytes()
  for tokens in data.train_batches(dataset, config, seed=3)[5]['tokens']:
    assert tokens.astype(dataset.train.dtype).tobytes() in stream


def test_every_source_has_its_validation_set_and_may_give_less(mixture):
  config = mixture()
  config['sources']['a']['max_tokens'] = 100
  dataset = data.prepare(config)
  assert list(dataset.validation_sets) == ['a', 'b']
  for name, held_out in dataset.validation_sets.items():
    assert held_out is dataset.sources[name] and len(held_out.validation) > 10
  assert len(dataset.train) == 2 * 60  # of the 100 tokens two times 40


@pytest.fixture
def trained(monkeypatch):
  """How often a BPE was trained for a mixture."""
  calls, train = [], datasets._train_bpe
  monkeypatch.setattr(datasets, '_train_bpe', lambda *args: [calls.append(1), train(*args)])
  return calls


def test_a_bpe_is_trained_once_on_the_training_documents_of_all(mixture, trained):
  config = mixture(tokenizer='bpe', vocab_size=280, separator='bos_eos')
  dataset = data.prepare(config)
  again = data.prepare({**config, 'sequence_length': 5})
  assert trained == [1]
  hashes = {source.tokenizer.hash for source in [*dataset.sources.values(), again]}
  assert hashes == {dataset.tokenizer.hash}
  assert dataset.tokenizer.vocab_size == 280 and dataset.tokenizer.bos is not None

  texts = []
  for source in dataset.sources.values():
    ids = source.train[:]
    for part in np.split(ids, np.flatnonzero(ids == source.tokenizer.eos) + 1):
      texts.append(source.tokenizer.decode(part))
  folder = dataset.sources['a'].folder.parent
  [saved] = folder.glob('mixture-bpe-*/')
  documents = [datasets.Document.of('', text) for text in texts if text]
  expected = datasets.vocabularies.make(data.resolve(config), iter(documents))
  assert expected.hash == tokenizers.load(saved).hash == dataset.tokenizer.hash


def test_bpe_documents_counts_those_of_each_source(mixture):
  config = mixture(tokenizer='bpe', vocab_size=300)
  everything, many, few = (
    data.prepare({**config, 'bpe_documents': count}).tokenizer.hash for count in (0, 30, 2)
  )
  assert few != everything == many  # 30 would leave out some of both together


def test_a_damaged_shared_tokenizer_is_made_again(mixture, trained, tmp_path):
  config = mixture(tokenizer='bpe', vocab_size=280)
  before = data.prepare(config).tokenizer.hash
  [saved] = (tmp_path / 'cache').glob('mixture-bpe-*/tokenizer.json')
  saved.write_text(saved.read_text() + ' ')
  assert data.prepare(config).tokenizer.hash == before
  assert trained == [1, 1]


def test_what_a_run_must_not_change_is_of_all_sources(mixture, folder_of):
  config = mixture()
  identity = data.prepare(config).identity
  assert json.loads(json.dumps(identity)) == identity
  assert identity['split'] == {'a': 'document_hash', 'b': 'document_hash'}
  config['sources']['b'] = {'files': folder_of([make_text(seed, 60) for seed in range(16)], 'c')}
  changed = data.prepare(config).identity
  assert changed['corpus']['a'] == identity['corpus']['a']
  assert changed['corpus']['b'] != identity['corpus']['b']


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (
      {'sources': {'a': {'files': '/nowhere/*.txt'}}, 'interleave': 'a:1'},
      "data.sources.a: data.files='/nowhere/.*' matches no file",
    ),
    ({'chunk_tokens': 10**6}, 'data.sequence_length=10 needs 11 tokens but the mixture has 0'),
    ({'sequence_length': 10**4}, 'data.sources.a: data.sequence_length=10000 needs 10001 tokens'),
    ({'tokenizer': 'bpe', 'vocab_size': 5}, 'data.vocab_size=5 is too small'),
  ],
)
def test_a_mistake_is_one_line_that_names_the_source(mixture, fields, words):
  with pytest.raises(ValueError, match=words) as error:
    data.prepare(mixture(**fields))
  assert '\n' not in str(error.value)


def test_ids_beyond_the_model_are_refused(mixture):
  with pytest.raises(ValueError, match='model.vocab_size=100 leaves token ids outside'):
    data.prepare(mixture()).check_vocabulary(100)


def test_every_source_of_a_mixture_is_verified(mixture):
  config = mixture(tokenizer='bpe', vocab_size=270)
  folders = [source.folder for source in data.prepare(config).sources.values()]
  assert data.damaged_files(config) == []
  for folder in folders:
    (folder / 'train-00000.bin').unlink()
  found = data.damaged_files(config)
  assert [line.split(' ')[0] for line in found] == [f'{f}/train-00000.bin' for f in folders]
  [shared] = (p for p in folders[0].parent.glob('mixture-bpe-*') if p.is_dir())
  (shared / 'tokenizer.json').write_text('{}')
  assert 'mixture-bpe' in data.damaged_files(config)[0] and len(data.damaged_files(config)) == 1


def test_dead_rows_of_a_larger_vocabulary_are_counted(packed):
  dataset, _ = packed
  (said,) = dataset.remarks(types.SimpleNamespace(vocab_size=300))
  assert 'model.vocab_size=300, but the tokenizer has 256 tokens: 44 rows of the embedding' in said
  assert not dataset.remarks(types.SimpleNamespace(vocab_size=256))
