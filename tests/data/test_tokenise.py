import json

import numpy as np
import pytest

from crt_jax import data
from crt_jax.data import tokenise, vocabularies
from crt_jax.data.corpora import open_corpus

SPLITS = ('train', 'validation')


def all_tokens(dataset, split):
  return getattr(dataset, split)[:]


def documents_in(dataset, split):
  """The documents of a split, taken apart at the separators."""
  tokens, tokenizer = all_tokens(dataset, split), dataset.tokenizer
  ends = np.flatnonzero(tokens == tokenizer.eos)
  return [tokenizer.decode(part) for part in np.split(tokens, ends + 1)[:-1]]


@pytest.mark.parametrize('tokenizer', ['bytes', 'bpe'])
def test_each_document_is_whole_and_in_one_split(settings, tokenizer, documents):
  dataset = data.prepare(settings(documents, tokenizer=tokenizer, vocab_size=280, separator='eos'))
  train, validation = (documents_in(dataset, split) for split in SPLITS)
  assert sorted(train + validation) == sorted(documents)
  assert train == [text for text in documents if text in train]  # in order
  assert validation and not set(train) & set(validation)


@pytest.mark.parametrize('tokenizer', ['bytes', 'bpe'])
def test_a_contiguous_cut_is_of_the_token_stream(settings, tokenizer, documents):
  dataset = data.prepare(
    settings(documents, tokenizer=tokenizer, vocab_size=280, split='contiguous', separator='eos')
  )
  stream = np.concatenate([all_tokens(dataset, split) for split in SPLITS])
  assert dataset.tokenizer.decode(stream) == ''.join(documents)
  assert len(dataset.train) == int(0.9 * len(stream))
  counts = dataset.manifest['splits']
  assert counts['train']['documents'] is None
  expected = [dataset.tokenizer.count_bytes(all_tokens(dataset, split)) for split in SPLITS]
  assert [counts[split]['bytes'] for split in SPLITS] == expected
  assert sum(expected) == len(''.join(documents).encode('utf-8'))


@pytest.mark.parametrize('tokenizer', ['bytes', 'bpe'])
def test_validation_files_are_the_validation_split(settings, folder_of, documents, tokenizer):
  held_out = ['Ахав, ' * 9, 'whale ' * 9]
  config = settings(documents, tokenizer=tokenizer, vocab_size=280, separator='eos')
  without = data.prepare(config)
  dataset = data.prepare({**config, 'validation_files': folder_of(held_out, 'held_out')})
  assert documents_in(dataset, 'train') == documents
  assert documents_in(dataset, 'validation') == held_out
  assert dataset.manifest['split']['rule'] == 'validation_files'
  counts = dataset.manifest['splits']['validation']
  assert (counts['documents'], counts['bytes']) == (2, sum(len(t.encode()) for t in held_out))
  assert dataset.folder != without.folder
  if tokenizer == 'bpe':  # made from the training documents alone
    alone = vocabularies.make(data.resolve(config), open_corpus(data.resolve(config)).documents())
    assert dataset.tokenizer.hash == alone.hash


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'validation_files': '/nowhere/*.txt'}, "data.validation_files='/nowhere/.*' matches no file"),
    ({'split': 'contiguous'}, "data.split='contiguous' has no effect"),
    ({}, 'data.validation_files=.* and data.files both match .*0000.txt'),
  ],
)
def test_wrong_validation_files_are_one_line(settings, fields, words):
  config = settings()
  with pytest.raises(ValueError, match=words) as error:
    data.prepare({**config, 'validation_files': config['files'], **fields})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('separator', 'wrap'),
  [
    ('none', lambda ids: ids),
    ('eos', lambda ids: [*ids, 256]),
    ('bos_eos', lambda ids: [256, *ids, 257]),
  ],
)
def test_separators_stand_around_every_document(settings, separator, wrap):
  dataset = data.prepare(
    settings(
      ['ab', 'né'],
      separator=separator,
      split='contiguous',
      sequence_length=1,
      validation_fraction=0.5,
    )
  )
  stream = np.concatenate([all_tokens(dataset, split) for split in SPLITS])
  assert stream.tolist() == [*wrap(list(b'ab')), *wrap(list('né'.encode()))]
  assert sum(dataset.manifest['splits'][split]['bytes'] for split in SPLITS) == 5


def test_the_manifest_says_what_the_tokens_are(settings, documents):
  config = settings(documents, separator='eos')
  dataset = data.prepare(config)
  manifest = json.loads((dataset.folder / 'manifest.json').read_text())
  assert manifest['format_version'] == 1
  assert manifest['corpus']['documents'] == 25
  assert manifest['corpus']['bytes'] == sum(len(text.encode()) for text in documents)
  assert manifest['tokenizer']['hash'] == dataset.tokenizer.hash
  assert manifest['split'] == {'rule': 'document_hash', 'validation_fraction': 0.1}
  assert (manifest['separator'], manifest['dtype']) == ('eos', '<u2')
  for split in SPLITS:
    counts = manifest['splits'][split]
    texts = documents_in(dataset, split)
    assert counts['documents'] == len(texts)
    assert counts['bytes'] == sum(len(text.encode('utf-8')) for text in texts)
    assert counts['tokens'] == len(getattr(dataset, split)) == counts['bytes'] + len(texts)
    assert dataset.bytes_per_token(split) == counts['bytes'] / counts['tokens']


def test_the_corpus_hash_is_of_the_text_alone(settings, documents):
  first = data.prepare(settings(documents)).manifest['corpus']
  assert data.prepare(settings(documents, separator='eos')).manifest['corpus'] == first
  assert data.prepare(settings(documents[::-1])).manifest['corpus']['sha256'] != first['sha256']


@pytest.mark.parametrize('split', ['document_hash', 'contiguous'])
def test_tokens_do_not_depend_on_pieces_batches_or_shards(
  settings, tmp_path, monkeypatch, split, documents
):
  config = data.resolve(
    settings(documents, tokenizer='bpe', vocab_size=290, separator='eos', split=split)
  )
  expected = data.prepare(config)
  monkeypatch.setattr('crt_jax.data.tokenizers.PIECE_CHARACTERS', 7)
  monkeypatch.setattr('crt_jax.data.text_files.BLOCK_BYTES', 11)
  monkeypatch.setattr('crt_jax.data.parts.BATCH_CHARACTERS', 50)
  monkeypatch.setattr('crt_jax.data.parts.PART_CHARACTERS', 333)
  monkeypatch.setattr('crt_jax.data.corpora.UNIT_BYTES', 1000)
  monkeypatch.setattr(tokenise, '_COPY_TOKENS', 13)
  folder, reports = tmp_path / 'small', []
  folder.mkdir()
  made = dict(parts=tmp_path / 'parts', report=lambda *done: reports.append(done))
  tokenise.pack(config, open_corpus(config), folder, shard_tokens=100, **made)
  assert len(list(tmp_path.glob('parts/*/*.npz'))) > 10
  cut = data.open_packed(folder)
  assert len(cut.manifest['splits']['train']['shards']) > 3
  assert not list(folder.glob('stream*'))
  for name in SPLITS:
    np.testing.assert_array_equal(all_tokens(cut, name), all_tokens(expected, name))
    assert cut.bytes_per_token(name) == expected.bytes_per_token(name)
  training, *reports = reports
  assert training == ('training a vocabulary of 290 tokens', 0, 0)
  assert reports == sorted(reports) and 0 < reports[-1][1] <= reports[-1][2]
  assert reports[0][:2] == ('tokenising', 0)


def test_a_vocabulary_is_made_from_training_documents_alone(settings, monkeypatch, documents):
  make, read = tokenise.vocabularies.make, []

  def recording(config, training):
    texts = list(training)
    read.extend(document.text for document in texts)
    return make(config, iter(texts))

  monkeypatch.setattr(tokenise.vocabularies, 'make', recording)
  config = settings(documents, tokenizer='bpe', vocab_size=300, separator='eos')
  dataset = data.prepare(config)
  assert read == documents_in(dataset, 'train')


def test_a_corpus_that_changes_under_the_reader_is_refused(
  settings, tmp_path, monkeypatch, documents
):
  config = data.resolve(settings(documents))
  make = tokenise.Parts.make

  def make_then_change(*arguments):
    make(*arguments)
    with open(config.files.replace('*', '0003'), 'a') as file:
      file.write('more')

  monkeypatch.setattr(tokenise.Parts, 'make', make_then_change)
  with pytest.raises(ValueError, match="data.corpus='files' changed while it was read"):
    data.prepare(config)


@pytest.mark.parametrize(
  ('documents', 'fields', 'words'),
  [
    (
      ['a' * 50],
      {'sequence_length': 16},
      'data.sequence_length=16 needs 17 tokens but the validation',
    ),
    (['a' * 50], {'sequence_length': 46}, 'data.sequence_length=46 needs 47 tokens but the train'),
    (['a'], {}, 'use at most 0'),
    (['', ' '], {}, "data.corpus='files' holds no text"),
    (['same'] * 20, {}, 'cannot split 20 equal document'),
  ],
)
def test_a_corpus_that_cannot_be_used_is_one_line(settings, documents, fields, words):
  with pytest.raises(ValueError) as error:
    data.prepare(settings(documents, **fields))
  assert words in str(error.value) and '\n' not in str(error.value)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(packed):
  dataset, _ = packed
  dataset.check_vocabulary(256)
  with pytest.raises(ValueError, match='model.vocab_size=255 .*the tokenizer has 256'):
    dataset.check_vocabulary(255)


def test_a_large_cache_is_sampled_and_read_whole_on_request(settings, monkeypatch, documents):
  monkeypatch.setattr('crt_jax.data.token_dataset.READ_WHOLE_BYTES', 0)
  monkeypatch.setattr('crt_jax.data.token_files._BLOCK_BYTES', 4)
  config = settings(documents)
  path = data.prepare(config).folder / 'train-00000.bin'
  intact = path.read_bytes()
  path.write_bytes(intact[:101] + b'\xff' + intact[102:])
  data.prepare(config)
  assert path.read_bytes() != intact
  data.prepare(config, whole=True)
  assert path.read_bytes() == intact
