import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt_jax import data
from crt_jax.data.token_files import TokenFile, TokenWriter


@pytest.fixture(scope='module')
def dataset_of(packed, tmp_path_factory):
  """A data set whose validation split is 0, 1, ..., n-1."""

  def make(tokens):
    folder = tmp_path_factory.mktemp('validation')
    writer = TokenWriter(folder, 'validation', 1000, shard_tokens=13)
    writer.write(np.arange(tokens))
    paths = [folder / shard.file for shard in writer.close()]
    return dataclasses.replace(packed[0], validation=TokenFile(paths, np.dtype('<u2')))

  return make


@given(
  tokens=st.integers(2, 120),
  length=st.integers(1, 20),
  local=st.integers(1, 4),
  count=st.integers(1, 3),
)
def test_the_whole_split_scores_every_token_but_the_first_once(
  dataset_of, tokens, length, local, count
):
  if tokens <= length:
    return
  dataset, scored = dataset_of(tokens), []
  shares = [
    list(data.whole_validation(dataset, length, local * count, rows))
    for rows in np.split(np.arange(local * count), count)
  ]
  assert len({len(share) for share in shares}) == 1  # processes take the same number of steps
  for batches in zip(*shares, strict=True):
    for batch in batches:
      assert batch['tokens'].shape == batch['targets'].shape == (local, length)
      assert batch['tokens'].dtype == batch['targets'].dtype == np.int32
      counted = batch['targets'] >= 0
      np.testing.assert_array_equal(batch['targets'][counted], batch['tokens'][counted] + 1)
      assert np.all(batch['targets'][~counted] == -1)
      assert np.all(batch['tokens'][~counted] == 0)
      scored.extend(batch['targets'][counted].tolist())
  assert scored == list(range(1, tokens))  # once each, and in order over the processes


@given(
  tokens=st.integers(2, 120),
  length=st.integers(1, 20),
  local=st.integers(1, 4),
  processes=st.integers(1, 3),
  count=st.integers(1, 9),
)
def test_the_first_windows_are_carts(dataset_of, tokens, length, local, processes, count):
  """Window i is tokens[i*T : i*T + T + 1], for the first `count` that there are (cart.md, 5.4)."""
  if tokens <= length:
    return
  shares = [
    data.first_validation(dataset_of(tokens), length, local * processes, count, rows)
    for rows in np.split(np.arange(local * processes), processes)
  ]
  rows = []
  for batches in zip(*shares, strict=True):
    for batch in batches:
      assert batch['tokens'].shape == batch['targets'].shape == (local, length)
      for inputs, targets in zip(batch['tokens'], batch['targets'], strict=True):
        assert (targets < 0).all() or (targets >= 0).all()  # whole windows
        if targets[0] >= 0:
          rows.append([*inputs.tolist(), targets[-1]])
  windows = [list(range(i * length, i * length + length + 1)) for i in range(count)]
  assert rows == [window for window in windows if window[-1] < tokens]


def test_sampled_batches_are_the_same_every_time(packed):
  dataset, _ = packed
  first, again = (data.sampled_validation(dataset, 16, 6, 20, 42) for _ in range(2))
  assert len(first) == 20
  for one, other in zip(first, again, strict=True):
    np.testing.assert_array_equal(one['tokens'], other['tokens'])
    assert one['tokens'].shape == (6, 16) and one['tokens'].dtype == np.int32
    np.testing.assert_array_equal(one['tokens'][:, 1:], one['targets'][:, :-1])
  other_seed = data.sampled_validation(dataset, 16, 6, 20, 43)
  assert not np.array_equal(first[0]['tokens'], other_seed[0]['tokens'])


def test_sampled_batches_are_windows_at_the_documented_offsets(dataset_of):
  batches = data.sampled_validation(dataset_of(100), 16, 6, 20, 42)
  starts = np.random.RandomState(42).randint(0, 84, size=(20, 6))
  np.testing.assert_array_equal(np.stack([batch['tokens'][:, 0] for batch in batches]), starts)
  assert batches[0]['targets'][0].tolist() == list(range(starts[0, 0] + 1, starts[0, 0] + 17))


@pytest.mark.parametrize('rows', [[3], [2, 3], [0, 2, 5]])
@pytest.mark.parametrize(
  ('make', 'arguments'),
  [
    (data.whole_validation, ()),
    (data.sampled_validation, (4, 42)),
    (data.first_validation, (50,)),
  ],
)
def test_rows_are_those_of_the_whole_batches(packed, make, arguments, rows):
  """Whichever a process asks for, also such as are no neighbours."""
  whole = list(make(packed[0], 16, 6, *arguments))
  some = list(make(packed[0], 16, 6, *arguments, np.array(rows)))
  assert len(whole) == len(some) > 3
  for batch, found in zip(whole, some, strict=True):
    for name in ('tokens', 'targets'):
      np.testing.assert_array_equal(found[name], batch[name][rows])


@pytest.mark.parametrize(
  ('make', 'arguments'),
  [
    (data.whole_validation, ()),
    (data.sampled_validation, (20, 42)),
    (data.first_validation, (50,)),
  ],
)
def test_windows_longer_than_the_split_are_refused_at_once(packed, make, arguments):
  with pytest.raises(ValueError, match='sequence_length=100000 needs 100001 tokens but'):
    make(packed[0], 100_000, 4, *arguments)
