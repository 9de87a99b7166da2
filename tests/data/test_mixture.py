import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt_jax.data.mixture import Mixture, Part
from crt_jax.data.token_files import Tokens


class Numbers(Tokens):
  """The numbers first, first + 1, ..., made when they are asked for."""

  dtype = np.dtype('<u4')

  def __init__(self, size, first=0):
    self._size, self._first = size, first

  def __len__(self):
    return self._size

  def _read(self, start, stop):
    assert 0 <= start <= stop <= self._size
    return np.arange(self._first + start, self._first + stop, dtype=self.dtype)


def laid_out(parts, chunk):
  """The definition: whole periods, chunk after chunk."""
  texts = [part.tokens[: part.max_tokens or len(part.tokens)] for part in parts]
  stream, period = [], 0
  while all(
    (period + 1) * part.chunks * chunk <= len(text) for part, text in zip(parts, texts, strict=True)
  ):
    for part, text in zip(parts, texts, strict=True):
      size = part.chunks * chunk
      stream.append(text[period * size : (period + 1) * size])
    period += 1
  return np.concatenate(stream) if stream else np.empty(0, Numbers.dtype)


parts_of = st.lists(
  st.tuples(st.integers(0, 60), st.integers(1, 4), st.integers(0, 40)), min_size=1, max_size=3
)


@given(given_parts=parts_of, chunk=st.integers(1, 7), start=st.integers(0, 99), data=st.data())
def test_a_mixture_is_its_chunks_laid_out(given_parts, chunk, start, data):
  parts = [
    Part(Numbers(size, 1000 * index), chunks, most)
    for index, (size, chunks, most) in enumerate(given_parts)
  ]
  mixture, expected = Mixture(parts, chunk), laid_out(parts, chunk)
  assert len(mixture) == len(expected)
  np.testing.assert_array_equal(mixture[:], expected)
  stop = start + data.draw(st.integers(0, 30))
  np.testing.assert_array_equal(mixture[start:stop], expected[start:stop])
  length = data.draw(st.integers(1, 20))
  if len(expected) >= length:
    starts = np.array(data.draw(st.lists(st.integers(0, len(expected) - length), min_size=1)))
    rows = np.stack([expected[first : first + length] for first in starts])
    np.testing.assert_array_equal(mixture.windows(starts, length), rows)
    assert mixture.windows(starts, length).dtype == Numbers.dtype


@pytest.fixture(scope='module')
def published():
  """300 M, 300 M and 400 M tokens in chunks of 1024, three, three and four at a time."""
  sizes = {'tiny': (517_000_000, 3, 300_000_000), 'wiki': (300_000_000, 3, 0)}
  sizes['edu'] = (400_000_000, 4, 0)
  parts = [
    Part(Numbers(size, 10**9 * index), chunks, most)
    for index, (size, chunks, most) in enumerate(sizes.values())
  ]
  return Mixture(parts, 1024)


def test_the_published_mixture_has_its_published_size(published):
  assert len(published) == 999_997_440
  assert (len(published) - 1) // 1024 == 976_559  # windows of T = 1024
  assert 30_500 * 32 == 976_000 <= 976_559 // 32 * 32  # no run comes back to the start


def test_every_window_of_the_published_mixture_is_of_one_source(published):
  """Its 1024 inputs; the last target is the first token of the next chunk (cart.md, 5.2)."""
  windows = published.windows(np.arange(976_549, 976_559) * 1024, 1025)
  sources = windows[:, :-1] // 10**9
  np.testing.assert_array_equal(
    sources, np.repeat([[2]] * 1 + [[0]] * 3 + [[1]] * 3 + [[2]] * 3, 1024, axis=1)
  )
  assert windows[-1, 0] % 10**9 == 400_000_000 - 400_000_000 % 4096 - 2 * 1024


def test_a_source_that_cannot_fill_a_period_leaves_nothing():
  assert len(Mixture([Part(Numbers(100), 1), Part(Numbers(19), 2)], 10)) == 0
