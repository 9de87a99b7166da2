import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt_jax import data
from crt_jax.data import training_batches
from crt_jax.data.training_batches import WindowSource

RULES = ('shuffled', 'random_offsets', 'in_order')


def batches_of(packed, sampling, seed=7, rows=None, **fields):
  dataset, config = packed
  changed = {**vars(config), 'sampling': sampling, **fields}
  return data.train_batches(dataset, changed, seed, rows)


def starts_of(sampling, tokens, length, batch_size, seed, step):
  config = data.resolve({'sampling': sampling, 'sequence_length': length, 'batch_size': batch_size})
  return training_batches._rule(config, tokens)(seed, step, np.arange(batch_size))


@pytest.mark.parametrize('sampling', RULES)
def test_a_batch_is_windows_and_the_same_one_position_later(packed, sampling):
  dataset, _ = packed
  text = dataset.train[:].tobytes()
  batch = batches_of(packed, sampling)[3]
  for name in ('tokens', 'targets'):
    assert batch[name].shape == (12, 16) and batch[name].dtype == np.int32
  np.testing.assert_array_equal(batch['tokens'][:, 1:], batch['targets'][:, :-1])
  for tokens, targets in zip(batch['tokens'], batch['targets'], strict=True):
    assert np.append(tokens, targets[-1]).astype('<u2').tobytes() in text


@pytest.mark.parametrize('sampling', RULES)
def test_a_batch_depends_on_seed_and_step_alone(packed, sampling):
  first, again = batches_of(packed, sampling), batches_of(packed, sampling)
  backwards = {step: again[step] for step in (10**6, 50, 3, 0)}
  for step in (0, 3, 50, 10**6):
    np.testing.assert_array_equal(first[step]['tokens'], backwards[step]['tokens'])
  assert not np.array_equal(first[0]['tokens'], first[3]['tokens'])
  other = batches_of(packed, sampling, seed=8)[0]['tokens']
  assert np.array_equal(first[0]['tokens'], other) == (sampling == 'in_order')


@pytest.mark.parametrize('sampling', RULES)
@pytest.mark.parametrize('rows', [[0], [4, 5, 6, 7], [0, 3, 4, 11]])
def test_rows_are_those_of_the_global_batch(packed, sampling, rows):
  """Whichever a process asks for, also such as are no neighbours."""
  whole, some = batches_of(packed, sampling), batches_of(packed, sampling, rows=np.array(rows))
  for step in (0, 1, 41):
    for name in ('tokens', 'targets'):
      np.testing.assert_array_equal(some[step][name], whole[step][name][rows])


@pytest.mark.parametrize('sampling', RULES)
def test_a_process_reads_its_share_alone(packed, sampling):
  dataset, config = packed
  read = []

  class Tokens:
    def __len__(self):
      return len(dataset.train)

    def windows(self, starts, length):
      read.append(len(starts))
      return dataset.train.windows(starts, length)

  rule = training_batches._rule(
    data.resolve({**vars(config), 'sampling': sampling}), len(dataset.train)
  )
  WindowSource(Tokens(), 16, rule, seed=1, rows_b=np.array([1, 2, 5, 6]))[2]
  assert read == [4]


@pytest.mark.parametrize('sampling', RULES)
@pytest.mark.parametrize('start', [0, 5])
def test_an_iterator_continues_at_any_step(packed, sampling, start):
  batches = batches_of(packed, sampling)
  for step, batch in enumerate(itertools.islice(batches.iterator(start), 9), start=start):
    np.testing.assert_array_equal(batch['tokens'], batches[step]['tokens'])
    np.testing.assert_array_equal(batch['targets'], batches[step]['targets'])


@given(
  tokens=st.integers(2, 400),
  length=st.integers(1, 20),
  batch_size=st.integers(1, 9),
  seed=st.integers(0, 2**32 - 1),
)
def test_shuffled_windows_come_once_per_epoch(tokens, length, batch_size, seed):
  count = (tokens - 1) // length
  if not count:
    return
  steps = -(-3 * count // batch_size)
  drawn = np.concatenate(
    [starts_of('shuffled', tokens, length, batch_size, seed, step) for step in range(steps)]
  )
  every = np.arange(count) * length
  epochs = drawn[: 3 * count].reshape(3, count)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), every)
  if count > 30:
    assert not np.array_equal(epochs[0], epochs[1])  # each epoch has its own order
    assert not np.array_equal(epochs[0], every)


def test_epochs_of_neighbouring_seeds_are_unrelated():
  orders = [starts_of('shuffled', 1001, 10, 100, seed, step) for seed in (1, 2) for step in (0, 1)]
  for one, other in itertools.combinations(orders, 2):
    assert np.mean(one == other) < 0.1


@given(tokens=st.integers(2, 50), length=st.integers(1, 20), step=st.integers(0, 2**31 - 1))
def test_random_offsets_leave_room_for_the_last_target(tokens, length, step):
  if tokens > length:
    starts = starts_of('random_offsets', tokens, length, 64, 3, step)
    assert 0 <= starts.min() and starts.max() + length < tokens


def test_random_offsets_reach_both_ends_evenly():
  starts = np.concatenate(
    [starts_of('random_offsets', 26, 16, 100, 3, step) for step in range(100)]
  )
  counts = np.bincount(starts, minlength=10)
  assert len(counts) == 10 and np.all(np.abs(counts - 1000) < 150)


def test_in_order_is_carts_loader():
  """Windows i*T in file order, the last partial batch dropped, then from the start."""
  starts = [starts_of('in_order', 108, 10, 4, 0, step).tolist() for step in range(3)]
  assert starts == [[0, 10, 20, 30], [40, 50, 60, 70], [0, 10, 20, 30]]


def test_the_order_of_the_data_is_this_one():
  """Another order would change runs that are continued: if it must, say so in docs/LOG.md."""
  assert starts_of('shuffled', 1001, 10, 6, 42, step=0).tolist() == [930, 670, 20, 820, 550, 110]
  assert starts_of('shuffled', 1001, 10, 6, 42, step=20).tolist() == [290, 580, 350, 360, 110, 830]
  drawn = starts_of('random_offsets', 1001, 10, 6, 42, step=7)
  assert drawn.tolist() == [419, 243, 253, 410, 3, 496]


def test_any_length_fits_the_same_tokens(packed):
  dataset, _ = packed
  for length in (1, 7, 100):
    batch = batches_of(packed, 'shuffled', sequence_length=length)[0]
    assert batch['tokens'].shape == (12, length)
  assert data.open_packed(dataset.folder).folder == dataset.folder


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'sequence_length': 10**6}, 'data.sequence_length=1000000 needs 1000001 tokens'),
    ({'batch_size': 10**4, 'sampling': 'in_order'}, 'data.batch_size=10000 exceeds the'),
    ({'seed': -1}, r'seed=-1 must lie in \[0, 2\^32\)'),
    ({'seed': 2**32}, 'must lie in'),
  ],
)
def test_what_cannot_be_drawn_is_one_line(packed, fields, words):
  with pytest.raises(ValueError, match=words) as error:
    batches_of(packed, **{'sampling': 'shuffled', **fields})
  assert '\n' not in str(error.value)


def test_steps_outside_are_refused(packed):
  batches = batches_of(packed, 'shuffled')
  for step in (-1, training_batches.MAX_STEPS):
    with pytest.raises(IndexError):
      batches[step]
