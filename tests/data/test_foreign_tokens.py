"""Tokens in the formats of nanoGPT, llm.c and Megatron, written here byte by byte as those do."""

import struct

import numpy as np
import pytest

from crt_jax import data
from crt_jax.data import foreign_tokens

MEGATRON_CODES = {'<u2': 8, '<i4': 4}


def llm_c(ids, magic=20240520, version=1, dtype='<u2', count=None):
  header = np.zeros(256, '<i4')
  header[:3] = magic, version, len(ids) if count is None else count
  return header.tobytes() + np.asarray(ids, dtype).tobytes()


def write_megatron(folder, documents, dtype='<u2', code=None):
  """A corpus of documents, each a list of sequences of ids."""
  sequences = [np.asarray(ids, dtype) for document in documents for ids in document]
  sizes = [len(ids) for ids in sequences]
  starts = np.cumsum([0, *[ids.nbytes for ids in sequences]])[:-1]
  ends = np.cumsum([0, *map(len, documents)])
  (folder / 'a.bin').write_bytes(b''.join(ids.tobytes() for ids in sequences))
  (folder / 'a.idx').write_bytes(
    b'MMIDIDX\0\0'
    + struct.pack('<QBQQ', 1, code or MEGATRON_CODES[dtype], len(sizes), len(ends))
    + np.asarray(sizes, '<i4').tobytes()
    + np.asarray(starts, '<i8').tobytes()
    + np.asarray(ends, '<i8').tobytes()
  )


def read(*paths, dtype='uint16'):
  return [
    np.concatenate(list(document.blocks())).tolist()
    for document in foreign_tokens.read_tokens(paths, dtype)
  ]


@pytest.mark.parametrize(
  ('raw', 'dtype'),
  [
    (np.asarray([1, 50256, 7], '<u2').tobytes(), 'uint16'),
    (np.asarray([1, 50256, 7], '<u4').tobytes(), 'uint32'),
    (llm_c([1, 50256, 7]), 'uint16'),
    (llm_c([1, 50256, 7], 20240801, 7, '<u4'), 'uint16'),  # the header counts
  ],
)
def test_ids_of_a_bin(tmp_path, monkeypatch, raw, dtype):
  monkeypatch.setattr(foreign_tokens, 'BLOCK_TOKENS', 2)
  (tmp_path / 'a.bin').write_bytes(raw)
  assert read(tmp_path / 'a.bin', dtype=dtype) == [[1, 50256, 7]]


@pytest.mark.parametrize('dtype', MEGATRON_CODES)
def test_documents_of_megatron(tmp_path, dtype):
  write_megatron(tmp_path, [[[1, 2], [3]], [[]], [[4], [5, 6]]], dtype)
  assert read(tmp_path / 'a.bin', tmp_path / 'a.idx') == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
  ('name', 'raw', 'words'),
  [
    ('a.bin', b'123', 'a.bin: 3 bytes are no whole number of uint16'),
    ('a.bin', llm_c([1, 2], version=2), 'a.bin: version 2 of llm.c tokens; version 1 is'),
    ('a.bin', llm_c([1, 2], count=3), 'a.bin: holds 2 tokens, its header says 3'),
    ('a.idx', b'TFRecord', 'a.idx: no Megatron index'),
    ('a.idx', b'MMIDIDX\0\0' + struct.pack('<QBQQ', 1, 8, 9, 9), 'a.idx: cannot be read (it ends'),
    ('a.idx', b'MMIDIDX\0\0' + struct.pack('<QBQQ', 2, 8, 0, 0), 'a.idx: version 2, type 8'),
  ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name, raw, words):
  (tmp_path / name).write_bytes(raw)
  with pytest.raises(ValueError) as error:
    read(tmp_path / name)
  assert words in str(error.value) and '\n' not in str(error.value)


def test_a_bin_that_is_shorter_than_its_index_says(tmp_path):
  write_megatron(tmp_path, [[[1, 2, 3]]])
  (tmp_path / 'a.bin').write_bytes(b'\0\0')
  with pytest.raises(ValueError, match='a.bin: holds 1 tokens, a.idx says more'):
    read(tmp_path / 'a.idx')


def config_of(tmp_path, **changes):
  return dict(
    corpus='tokens', files=f'{tmp_path}/*.bin', sequence_length=4, batch_size=1,
    cache_dir=str(tmp_path / 'cache'),
  ) | changes  # fmt: skip


def test_tokens_become_a_data_set(tmp_path):
  """Of one file the tail is held out; a UTF-8 byte is a token, so bytes are counted too."""
  ids = np.frombuffer('Call me Ishmaël. '.encode() * 10, np.uint8)
  (tmp_path / 'train.bin').write_bytes(ids.astype('<u2').tobytes())
  dataset = data.prepare(config_of(tmp_path))
  cut = int(0.9 * len(ids))
  np.testing.assert_array_equal(dataset.train[:], ids[:cut])
  np.testing.assert_array_equal(dataset.validation[:], ids[cut:])
  assert dataset.bytes_per_token('train') == dataset.bytes_per_token('validation') == 1
  assert dataset.manifest['corpus']['bytes'] == len(ids)


@pytest.mark.parametrize('pattern', ['*.idx', '*.bin', ''])
def test_an_index_is_read_with_its_bin_whichever_is_named(tmp_path, pattern):
  folder = tmp_path / 'tokens'
  folder.mkdir()
  write_megatron(folder, [[[document, 2, 3, 4, 5, 6]] for document in range(20)])
  config = config_of(tmp_path, files=f'{folder}/{pattern}')
  before = data.prepare(config)
  assert sum(count['documents'] for count in before.manifest['splits'].values()) == 20
  raw = np.fromfile(folder / 'a.bin', '<u2')
  (folder / 'a.bin').write_bytes((raw + 100).tobytes())  # the index stays
  assert data.prepare(config).identity['corpus'] != before.identity['corpus']


def test_a_validation_file_of_tokens(tmp_path):
  (tmp_path / 'train.bin').write_bytes(np.arange(50, dtype='<u2').tobytes())
  (tmp_path / 'val.bin').write_bytes(np.arange(50, 60, dtype='<u2').tobytes())
  files = dict(files=f'{tmp_path}/train.bin', validation_files=f'{tmp_path}/val.bin')
  dataset = data.prepare(config_of(tmp_path, **files))
  assert (len(dataset.train), dataset.validation[:].tolist()) == (50, [*range(50, 60)])
  assert dataset.manifest['splits']['validation']['documents'] == 1


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({}, 'token id 300 is outside the vocabulary of 256'),
    ({'tokenizer': 'bpe'}, "data.corpus='tokens' has its tokens already"),
    ({'separator': 'eos'}, "use data.separator='none'"),
    ({'files': ''}, "such as '/tokens/*.bin'"),
    ({'files': '{}/a.txt'}, 'which is none of .bin, .idx'),
    ({'text_field': 'body'}, "read only where data.corpus is 'files' or 'tfds'"),
    ({'corpus': 'files', 'token_dtype': 'uint32', 'files': '{}/a.txt'}, "corpus is 'tokens'"),
  ],
)
def test_what_cannot_be_is_said_by_field(tmp_path, changes, words):
  (tmp_path / 'a.bin').write_bytes(np.full(50, 300, '<u2').tobytes())
  (tmp_path / 'a.txt').write_text('text')
  changes = {name: value.replace('{}', str(tmp_path)) for name, value in changes.items()}
  with pytest.raises(ValueError) as error:
    data.prepare(config_of(tmp_path, **changes))
  assert words in str(error.value) and '\n' not in str(error.value)
