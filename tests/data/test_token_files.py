import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt_jax.data import token_files
from crt_jax.data.token_files import DamagedCache, TokenFile, TokenWriter, verify


def write(folder, parts, vocab_size=1000, shard_tokens=token_files.SHARD_TOKENS):
  writer = TokenWriter(folder, 'train', vocab_size, shard_tokens)
  for part in parts:
    writer.write(np.asarray(part, np.int64))
  shards = writer.close()
  return shards, TokenFile(
    [folder / shard.file for shard in shards], token_files.token_dtype(vocab_size)
  )


@given(
  parts=st.lists(st.lists(st.integers(0, 999), max_size=9), max_size=6),
  shard_tokens=st.integers(1, 12),
  data=st.data(),
)
def test_shards_read_as_one_array(tmp_path_factory, parts, shard_tokens, data):
  folder = tmp_path_factory.mktemp('shards')
  shards, tokens = write(folder, parts, shard_tokens=shard_tokens)
  expected = np.array([token for part in parts for token in part], np.uint16)
  assert len(tokens) == len(expected) == sum(shard.tokens for shard in shards)
  assert all(shard.tokens == shard_tokens for shard in shards[:-1])
  index = st.none() | st.integers(-60, 60)
  part = slice(data.draw(index), data.draw(index))
  np.testing.assert_array_equal(tokens[part], expected[part])
  if len(expected):
    position = data.draw(st.integers(-len(expected), len(expected) - 1))
    assert tokens[position] == expected[position]
    length = data.draw(st.integers(1, len(expected)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(expected) - length), max_size=5)), int)
    rows = np.array([expected[start : start + length] for start in starts]).reshape(-1, length)
    np.testing.assert_array_equal(tokens.windows(starts, length), rows)
  verify(folder, shards, tokens.dtype, whole=True)
  verify(folder, shards, tokens.dtype, whole=False)


@pytest.mark.parametrize(('vocab_size', 'bytes_each'), [(65_536, 2), (65_537, 4)])
def test_the_smallest_type_that_holds_every_id(tmp_path, vocab_size, bytes_each):
  shards, tokens = write(tmp_path, [[0, vocab_size - 1]], vocab_size)
  assert tokens[:].tolist() == [0, vocab_size - 1]
  assert (tmp_path / shards[0].file).stat().st_size == 2 * bytes_each


@pytest.mark.parametrize('token', [-1, 1000, 65_536])
def test_an_id_outside_the_vocabulary_is_never_written(tmp_path, token):
  with pytest.raises(ValueError, match=f'token id {token} is outside the vocabulary of 1000'):
    write(tmp_path, [[5, token, 7]])


@pytest.mark.parametrize('whole', [True, False])
def test_a_changed_file_is_noticed(tmp_path, whole):
  shards, tokens = write(tmp_path, [range(900)])
  path = tmp_path / shards[0].file
  intact = path.read_bytes()
  flipped = bytearray(intact)
  flipped[1001] ^= 1
  for wrong in (bytes(flipped), intact[:-2], intact + b'\0\0', b''):
    path.write_bytes(wrong)
    with pytest.raises(DamagedCache, match='train-00000.bin has'):
      verify(tmp_path, shards, tokens.dtype, whole)
  path.unlink()
  with pytest.raises(DamagedCache, match='cannot be read'):
    verify(tmp_path, shards, tokens.dtype, whole)


def test_of_a_large_file_the_ends_are_sampled_and_the_whole_on_request(tmp_path, monkeypatch):
  monkeypatch.setattr(token_files, '_BLOCK_BYTES', 4)
  shards, tokens = write(tmp_path, [range(900)])
  path = tmp_path / shards[0].file
  intact = path.read_bytes()
  for position in (0, len(intact) - 1):
    flipped = bytearray(intact)
    flipped[position] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DamagedCache):
      verify(tmp_path, shards, tokens.dtype, whole=False)
  flipped = bytearray(intact)
  flipped[30] ^= 1  # between two samples
  path.write_bytes(flipped)
  verify(tmp_path, shards, tokens.dtype, whole=False)
  with pytest.raises(DamagedCache):
    verify(tmp_path, shards, tokens.dtype, whole=True)


def test_slices_with_a_step_and_positions_outside_are_refused(tmp_path):
  _, tokens = write(tmp_path, [range(9)])
  with pytest.raises(ValueError, match='contiguous slices'):
    tokens[::2]
  with pytest.raises(IndexError):
    tokens[9]


def test_a_shard_is_plain_json(tmp_path):
  shards, _ = write(tmp_path, [range(9)])
  assert dataclasses.asdict(shards[0]).keys() == {'file', 'tokens', 'sha256', 'sampled_sha256'}
