import csv
import errno
import gzip
import io
import json
import pathlib

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from crt_jax import storage
from crt_jax.data import text_files


def read(path, field='text'):
  return [document.text for document in text_files.read_files([path], field)]


@pytest.mark.parametrize('suffix', ['.txt', '.txt.gz'])
@given(text=st.text(min_size=1, max_size=50), block=st.integers(1, 7))
def test_a_text_file_is_one_document_whatever_the_blocks(tmp_path_factory, suffix, text, block):
  path = tmp_path_factory.mktemp('text') / f'a{suffix}'
  raw = text.encode('utf-8')
  path.write_bytes(gzip.compress(raw) if suffix.endswith('.gz') else raw)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_files, 'BLOCK_BYTES', block)
    documents = list(text_files.read_files([path], 'text'))
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
      [document.text for document in text_files.read_files([path], 'text')]
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


TEXTS = ['one\r\nline', 'naïve “quotes”, and\ttabs', ' \n', 'last']


def column():
  return pyarrow.table({'n': [1, 2, 3, 4], 'body': TEXTS})


def write_table(path):
  """Writes TEXTS as the column 'body' of a table, in the format of the file's name."""
  if path.name == 'a.parquet':
    parquet.write_table(column(), path, row_group_size=3)
  elif path.name in ('file.arrow', 'stream.arrow'):
    new = pyarrow.ipc.new_file if path.name == 'file.arrow' else pyarrow.ipc.new_stream
    with new(str(path), column().schema) as writer:
      writer.write_table(column(), max_chunksize=3)
  else:
    text = io.StringIO(newline='')
    writer = csv.writer(text, delimiter='\t' if '.tsv' in path.name else ',')
    writer.writerows([('n', 'body'), *enumerate(TEXTS)])
    raw = text.getvalue().encode('utf-8')
    if path.suffix == '.zst':
      raw = pyarrow.compress(raw, 'zstd', asbytes=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == '.gz' else raw)


@pytest.mark.parametrize(
  'name',
  ['a.csv', 'a.tsv', 'a.csv.gz', 'a.tsv.zst', 'a.parquet', 'file.arrow', 'stream.arrow'],
)
def test_each_row_of_a_table_is_a_document(tmp_path, name):
  write_table(tmp_path / name)
  assert read(tmp_path / name, 'body') == [TEXTS[0], TEXTS[1], TEXTS[3]]
  with pytest.raises(
    ValueError, match=f"{name}: no field 'bodi'; did you mean 'body'.*has n, body"
  ):
    read(tmp_path / name, 'bodi')


@pytest.mark.parametrize('place', ['open', 'read'])
def test_an_error_of_the_disk_is_no_mistake_in_the_text(tmp_path, monkeypatch, place):
  (tmp_path / 'a.txt').write_text('text')

  def fails(*_):
    raise OSError(errno.ESTALE, 'Stale file handle')

  class Broken(io.BytesIO):
    read = read1 = readline = fails

  if place == 'open':
    monkeypatch.setattr(pathlib.Path, 'open', lambda *_, **options: fails())
  else:
    monkeypatch.setattr(text_files, '_open', lambda path: Broken())
  with pytest.raises(storage.OutOfReach, match=r'a\.txt: Stale file handle; nothing was changed'):
    read(tmp_path / 'a.txt')


@pytest.mark.parametrize('kind', ['.txt', '.md', '.json', '.jsonl'])
def test_texts_compressed_with_zstandard(tmp_path, kind):
  """Several frames behind each other too, as `zstd` appends them."""
  texts = ['{"text": "one"}\n', '{"text": "two"}\n']
  raw = b''.join(pyarrow.compress(text.encode(), 'zstd', asbytes=True) for text in texts)
  (tmp_path / f'a{kind}.zst').write_bytes(raw)
  expected = ['one', 'two'] if 'json' in kind else [''.join(texts)]
  assert read(tmp_path / f'a{kind}.zst') == expected


@pytest.mark.parametrize(
  ('name', 'raw', 'words'),
  [
    ('a.csv', b'text,n\nx,1\ny\n', 'a.csv, line 3: 1 columns, not 2'),
    ('a.csv', b'text,n\n"x,1\n', 'a.csv, line 2: unexpected end of data'),
    ('a.csv', b'text,n\nx,1\n\xff,2\n', 'a.csv: byte 11 is not UTF-8'),
    ('a.csv', b'', "a.csv: no field 'text' (has none)"),
    ('a.parquet', b'PAR1 is cut short', 'a.parquet: cannot be read'),
    ('a.arrow', b'ARROW1\0\0 is cut short', 'a.arrow: cannot be read'),
    ('a.arrow', b'neither file nor stream', 'a.arrow: cannot be read'),
    ('a.txt.zst', pyarrow.compress(b'x' * 1000, 'zstd', asbytes=True)[:-5], 'a.txt.zst: cannot'),
    ('a.txt.zst', b'plain text', 'a.txt.zst: cannot be read'),
  ],
)
def test_a_broken_table_is_one_line_that_names_it(tmp_path, name, raw, words):
  (tmp_path / name).write_bytes(raw)
  with pytest.raises(ValueError) as error:
    read(tmp_path / name)
  assert words in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['parquet', 'arrow'])
def test_rows_of_a_table_that_hold_no_text(tmp_path, kind):
  bad = pyarrow.array([b'\xff'], pyarrow.binary()).view(pyarrow.string())
  for column, words in (
    (pyarrow.array(['x', None]), "row 2: field 'text' holds NoneType"),
    (pyarrow.array([3]), "row 1: field 'text' holds int"),
    (bad, "row 1: field 'text' is not UTF-8"),
  ):
    table = pyarrow.table({'text': column})
    path = tmp_path / f'a.{kind}'
    if kind == 'parquet':
      parquet.write_table(table, path)
    else:
      with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(text_files.Malformed) as error:
      read(path)
    assert words in str(error.value) and 'data.skip_malformed' in str(error.value)


def lines_with_bad_ones(path, good, bad):
  lines = [json.dumps({'text': f'text {i}'}) for i in range(good)]
  lines[2:2] = ['{"text": '] * (bad - 3) + ['{"txt": "x"}', '{"text": 3}', '{"text": "\\ud800"}']
  path.write_text('\n'.join(lines))


def test_a_share_of_malformed_lines_is_left_out_and_counted(tmp_path, caplog):
  path = tmp_path / 'a.jsonl'
  lines_with_bad_ones(path, good=96, bad=4)
  skipping = text_files.Skipping(0.04)
  for _ in range(2):
    found = [document.text for document in text_files.read_files([path], 'text', skipping)]
    assert found == [f'text {i}' for i in range(96)]
  [said] = caplog.messages
  assert said.startswith('4 of 100 records are left out as malformed;')
  assert 'a.jsonl, line 3: not JSON' in said
  with pytest.raises(text_files.Malformed, match='4 malformed records, more than .*=0.03 of'):
    list(text_files.read_files([path], 'text', text_files.Skipping(0.03)))


def test_too_many_malformed_lines_stop_before_the_end(tmp_path):
  path = tmp_path / 'a.jsonl'
  lines_with_bad_ones(path, good=5000, bad=200)
  documents = text_files.read_files([path], 'text', text_files.Skipping(0.1))
  assert [next(documents).text for _ in range(2)] == ['text 0', 'text 1']
  with pytest.raises(text_files.Malformed, match='101 malformed records'):
    next(documents)
