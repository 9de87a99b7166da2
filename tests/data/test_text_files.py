import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt_jax.data import text_files


def read(path, field='text'):
  return [document.text for document in text_files.read_file(path, field)]


@pytest.mark.parametrize('suffix', ['.txt', '.txt.gz'])
@given(text=st.text(min_size=1, max_size=50), block=st.integers(1, 7))
def test_a_text_file_is_one_document_whatever_the_blocks(tmp_path_factory, suffix, text, block):
  path = tmp_path_factory.mktemp('text') / f'a{suffix}'
  raw = text.encode('utf-8')
  path.write_bytes(gzip.compress(raw) if suffix.endswith('.gz') else raw)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_files, 'BLOCK_BYTES', block)
    documents = list(text_files.read_file(path, 'text'))
    if documents:
      assert documents[0].text == documents[0].text == text  # can be read again
    else:
      assert not text.strip()


@pytest.mark.parametrize('suffix', ['.jsonl', '.jsonl.gz'])
def test_each_line_of_jsonl_is_a_document_and_blank_ones_are_left_out(tmp_path, suffix):
  texts = ['one\r\nline', 'naïve “quotes”', '  \n', 'last']
  raw = '\n\n'.join(json.dumps({'body': text, 'n': 1}) for text in texts).encode('utf-8')
  path = tmp_path / f'a{suffix}'
  path.write_bytes(gzip.compress(raw) if suffix.endswith('.gz') else raw)
  assert read(path, 'body') == ['one\r\nline', 'naïve “quotes”', 'last']


@given(before=st.text(max_size=40), block=st.integers(1, 9))
def test_an_undecodable_byte_is_named_with_its_offset(tmp_path_factory, before, block):
  path = tmp_path_factory.mktemp('bad') / 'latin1.txt'
  raw = before.encode('utf-8')
  path.write_bytes(raw + b'caf\xe9 au lait')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_files, 'BLOCK_BYTES', block)
    with pytest.raises(ValueError, match='latin1.txt: byte .* is not UTF-8') as error:
      [document.text for document in text_files.read_file(path, 'text')]
  assert f'byte {len(raw) + 3} ' in str(error.value)


def test_a_character_cut_off_at_the_end_is_undecodable(tmp_path):
  path = tmp_path / 'cut.txt'
  path.write_bytes('abc€'.encode()[:-1])
  with pytest.raises(ValueError, match='cut.txt: byte 3 is not UTF-8'):
    read(path)


@pytest.mark.parametrize(
  ('name', 'raw', 'words'),
  [
    ('a.jsonl', b'{"text": "x"}\n{"text": \n', 'a.jsonl, line 2: not JSON'),
    ('a.jsonl', b'{"txt": "x"}\n', "line 1: no field 'text'; did you mean 'txt'"),
    ('a.jsonl', b'["x"]\n', "line 1: no field 'text'"),
    ('a.jsonl', b'{"text": 3}\n', "field 'text' holds int"),
    ('a.jsonl', b'{"text": "\\ud800"}\n', 'half a surrogate pair'),
    ('a.jsonl', b'{"text": "x"}\n{"text": "\xff"}\n', 'byte 24 is not UTF-8'),
    ('a.txt.gz', gzip.compress(b'x' * 1000, mtime=0)[:-9], 'a.txt.gz: cannot be read'),
    ('a.txt.gz', b'plain text', 'a.txt.gz: cannot be read'),
  ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name, raw, words):
  (tmp_path / name).write_bytes(raw)
  with pytest.raises(ValueError) as error:
    read(tmp_path / name)
  assert words in str(error.value)
  assert '\n' not in str(error.value)
