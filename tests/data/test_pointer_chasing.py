"""The generator against the worked example, the published fixture, and a chase by hand."""

import pathlib
import random
import time

import numpy as np
import pytest

from crt_jax import data
from crt_jax.data.pointer_chasing import EQUALS, QUERY, SEP, PointerChasing

FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures' / 'pc_bptt_full.npz'
EXAMPLE = """10 2 4 10 2 5 12 2 6 3 1 4 1 5 1 6 3 5 2 7 6 2 8 4 2 9 3 1 7 1 8 1 9 3 1 7"""


def published_draws(task: PointerChasing, rng: random.Random) -> dict:
  """One example's choices by Python's `random` in the published order of calls (crt.md 11.1)."""
  base = [rng.randint(0, task.values - 1) for _ in range(task.keys)]
  tables = [list(range(task.keys)) for _ in range(task.levels - 1)]
  for table in tables:
    rng.shuffle(table)
  query = rng.randrange(task.keys)
  orders = np.tile(np.arange(task.keys), (1, 2 * task.levels, 1))
  tables = np.array(tables).reshape(1, task.levels - 1, task.keys)
  return dict(base=np.array([base]), tables=tables, query=np.array([query]), orders=orders)


def test_the_worked_example():
  task = PointerChasing(levels=2, keys=3, values=4)
  batch = task.write(published_draws(task, random.Random(42)))
  assert batch['tokens'].tolist() == [[int(token) for token in EXAMPLE.split()]]
  targets = batch['targets'][0]
  assert np.flatnonzero(targets >= 0).tolist() == [11, 13, 15, 28, 30, 32, 35]
  assert targets[targets >= 0].tolist() == [10, 10, 12, 10, 12, 10, 10]
  assert task.vocab_size == 14


def test_the_fixture_holds_the_next_examples_of_a_published_stream():
  arrays = np.load(FIXTURE)
  rng = random.Random(42)
  task = PointerChasing(levels=3, keys=3, values=4)
  published_draws(task, rng)  # the fixture holds examples 2 to 5
  for tokens, targets in zip(arrays['idx'], arrays['tgt'], strict=True):
    batch = task.write(published_draws(task, rng))
    np.testing.assert_array_equal(batch['tokens'][0], tokens)
    np.testing.assert_array_equal(batch['targets'][0], targets)


@pytest.mark.parametrize(
  'levels, keys, values, length, vocabulary',
  [(10, 5, 10, 272, 64), (10, 10, 20, 522, 124), (3, 5, 10, 83, 29), (20, 8, 10, 842, 174)],
)
def test_lengths_and_vocabularies(levels, keys, values, length, vocabulary):
  task = PointerChasing(levels, keys, values)
  batch = task.batch(0, 0, 2)
  assert batch['tokens'].shape == batch['targets'].shape == (2, length)
  assert (task.sequence_length, task.vocab_size) == (length, vocabulary)
  assert task.tokenizer.vocab_size == vocabulary
  assert (batch['targets'] >= 0).sum(axis=1).tolist() == [levels * keys + 1] * 2
  assert batch['tokens'].max() < vocabulary and batch['tokens'].dtype == np.int32


def chase(tokens: np.ndarray) -> dict[int, int]:
  """Position of every asked key -> the token that its chain ends in, by following the entries."""
  table = {tokens[i + 1]: tokens[i - 1] for i in np.flatnonzero(tokens == EQUALS)}
  found = {}
  for i in np.flatnonzero(tokens == QUERY) + 1:
    token = tokens[i]
    while token in table:
      token = table[token]
    found[int(i)] = int(token)
  return found


@pytest.mark.parametrize('permutation', (True, False))
@pytest.mark.parametrize('shuffle', (True, False))
def test_targets_are_the_ends_of_the_chains(permutation, shuffle):
  task = PointerChasing(levels=4, keys=4, values=6, permutation=permutation, shuffle=shuffle)
  batch = task.batch(1, 5, 32)
  for tokens, targets in zip(batch['tokens'], batch['targets'], strict=True):
    assert chase(tokens) == {i: targets[i] for i in np.flatnonzero(targets >= 0)}
    assert [tokens[(level + 1) * task.block - 1] for level in range(4)] == [SEP] * 4
  keys = batch['tokens'][:, 2 : 3 * 4 : 3]
  assert (keys == keys[0]).all() != shuffle
  pointers = np.sort(batch['tokens'][:, task.block : task.block + 12 : 3], axis=1)
  assert (pointers == 4 + np.arange(4)).all() == permutation


def test_a_batch_is_a_function_of_seed_and_step():
  task = PointerChasing(levels=3)
  config = data.resolve({'corpus': 'pointer_chasing:levels=3', 'sequence_length': 83})
  batches = data.train_batches(task, config, 7)
  for step in (0, 9, 10**6):
    np.testing.assert_array_equal(batches[step]['tokens'], task.batch(7, step, 16)['tokens'])
  rows = np.array([0, 3, 4, 15])
  some, whole = data.train_batches(task, config, 7, rows)[9], batches[9]
  for name in ('tokens', 'targets'):
    np.testing.assert_array_equal(some[name], whole[name][rows])
  assert not np.array_equal(whole['tokens'], batches[10]['tokens'])
  assert not np.array_equal(whole['tokens'], task.batch(8, 9, 16)['tokens'])
  assert next(batches.iterator(9))['tokens'].tolist() == whole['tokens'].tolist()


def test_validation_is_the_same_every_time_and_no_training_batch():
  task = PointerChasing(levels=3, curriculum='0:1')
  first, second = data.sampled_validation(task, 83, 8, 2, 7)
  [again] = data.sampled_validation(task, 83, 8, 1, 7)
  np.testing.assert_array_equal(first['tokens'], again['tokens'])
  assert not np.array_equal(first['tokens'], second['tokens'])
  assert not np.array_equal(first['tokens'], task.batch(7, 0, 8)['tokens'])
  assert (first['targets'] >= 0).sum() == 8 * 16, 'the curriculum is of training alone'
  with pytest.raises(ValueError, match='eval.whole=False'):
    data.whole_validation(task, 83, 8)


def test_curricula():
  task = PointerChasing(levels=3, curriculum='0:1/10:3', key_curriculum='0:2/20:5')
  early, later, last = (task.batch(0, step, 4) for step in (9, 10, 20))
  counted = [(batch['targets'] >= 0).sum() // 4 for batch in (early, later, last)]
  assert counted == [2, 7, 16]
  assert np.flatnonzero(early['targets'][0] >= 0).max() < task.block
  others = early['tokens'][:, task.block + 6 : task.block + 15 : 3]
  assert (others == 4 + np.arange(2, 5)).all(), 'the other keys point to their like'
  for tokens, targets in zip(later['tokens'], later['targets'], strict=True):
    answers = chase(tokens)
    assert all(answers[i] == targets[i] for i in np.flatnonzero(targets >= 0))


def test_answer_groups_are_the_targets():
  task = PointerChasing(levels=3)
  positions = np.flatnonzero(task.batch(0, 0, 1)['targets'][0] >= 0)
  assert list(task.answer_groups) == ['level_0', 'level_1', 'level_2', 'final']
  np.testing.assert_array_equal(np.concatenate(list(task.answer_groups.values())), positions)


def test_the_least_window_spans_an_entry_and_the_first_answer_before():
  task = PointerChasing(levels=2)
  last_entry = task.block + 3 * task.keys - 1
  first_answer = task.answer_groups['level_0'][0]
  assert task.least_window == last_entry - first_answer + 1 == 25
  model = type('', (), dict(window=24))()
  assert '5 * keys = 25' in task.remarks(model)[0]
  for window in (0, 25, 38):
    model.window = window
    assert task.remarks(model) == []


def test_speed():
  task = PointerChasing()
  task.batch(0, 0, 64)
  start = time.process_time()
  for step in range(50):
    task.batch(0, step, 64)
  assert 50 * 64 / (time.process_time() - start) > 20_000


def test_it_is_opened_by_its_name():
  config = dict(corpus='pointer_chasing:levels=2,keys=3,values=4,shuffle=true', sequence_length=36)
  task = data.prepare(config)
  assert task == PointerChasing(levels=2, keys=3, values=4, shuffle=True)
  task.check_vocabulary(14)
  other = data.prepare(config | dict(corpus='pointer_chasing:levels=2,keys=3,values=4'))
  assert task.identity != other.identity


@pytest.mark.parametrize(
  'corpus, message',
  [
    ('pointer_chasing:key=3', "no argument 'key'; did you mean 'keys'"),
    ('pointer_chasing:keys=three', "keys='three' must be int"),
    ('pointer_chasing:shuffle=yes', "shuffle='yes' must be bool"),
    ('pointer_chasing:levels=0', 'levels=0 must be at least 1'),
    ('pointer_chasing:curriculum=5:1', 'from step 0 on'),
    ('pointer_chasing:curriculum=0:11', 'numbers from 1 to 10'),
    ('pointer_chasing:levels=3', r'data.sequence_length=256 must be .* = 83'),
  ],
)
def test_mistakes_are_one_line(corpus, message):
  with pytest.raises(ValueError, match=message) as caught:
    data.prepare(dict(corpus=corpus, sequence_length=256))
  assert '\n' not in str(caught.value)


def test_another_vocabulary_is_refused():
  with pytest.raises(ValueError, match=r'data.vocab_size to 4 \+ levels \* keys \+ values = 64'):
    PointerChasing().check_vocabulary(65)


def test_names_of_the_tokens():
  task = PointerChasing(levels=2, keys=3, values=4)
  tokens = [int(token) for token in EXAMPLE.split()]
  text = task.tokenizer.decode(tokens)
  assert text.startswith('value0 EQUALS key0.0') and text.endswith('QUERY key1.0')
  assert task.tokenizer.encode(text) == tokens
