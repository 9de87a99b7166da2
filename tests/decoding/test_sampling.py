"""The cuts keep exactly the right tokens, and those are drawn as often as they should be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.decoding.sampling import Sampling, noise, row_keys, sample

LOGITS = np.log([0.05, 0.4, 0.15, 0.3, 0.1]).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def jitted(sampling, logits, keys, positions):
  return sample(sampling, logits, noise(keys, positions))


def frequencies(sampling, draws=4000):
  logits = jnp.broadcast_to(LOGITS, (draws, 5))
  keys = row_keys(0, jnp.zeros(draws, jnp.int32))
  tokens = jitted(sampling, logits, keys, jnp.arange(draws))
  return np.bincount(np.asarray(tokens), minlength=5) / draws


@pytest.mark.parametrize(
  'sampling,expected',
  [
    (Sampling(), [0.05, 0.4, 0.15, 0.3, 0.1]),
    (Sampling(temperature=0.5), np.array([25, 1600, 225, 900, 100]) / 2850),
    (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
    (Sampling(top_k=99), [0.05, 0.4, 0.15, 0.3, 0.1]),
    (Sampling(top_p=0.75), [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
    (Sampling(top_p=0.01), [0, 1, 0, 0, 0]),
    # Top-p counts what top-k has left: 4/7 = 0.57 alone reaches 0.5, of all tokens 0.4 would not.
    (Sampling(top_k=2, top_p=0.5), [0, 1, 0, 0, 0]),
    # Temperature comes first: at 0.5 the best token alone holds 1600/2850 = 0.56.
    (Sampling(temperature=0.5, top_p=0.5), [0, 1, 0, 0, 0]),
    (Sampling(temperature=0, top_k=3), [0, 1, 0, 0, 0]),
    (Sampling(vocab_size=3), np.array([5, 40, 15, 0, 0]) / 60),
  ],
)
def test_frequencies(sampling, expected):
  found = frequencies(sampling)
  expected = np.asarray(expected)
  assert not found[expected == 0].any()
  assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize('vocabulary', (1, 127, 128, 129, 1000))
def test_what_is_impossible_is_never_drawn(vocabulary):
  """In any block, beside the padding, and where one token has nearly all the probability."""
  logits = np.full(vocabulary, -np.inf, np.float32)
  logits[[0, vocabulary // 2, vocabulary - 1]] = (0, 0, 16)
  draws = 3000
  keys, positions = row_keys(0, jnp.zeros(draws, int)), jnp.arange(draws)
  tokens = jitted(Sampling(), jnp.broadcast_to(logits, (draws, vocabulary)), keys, positions)
  assert set(np.asarray(tokens)) <= {0, vocabulary // 2, vocabulary - 1}
  even = np.where(logits > -np.inf, 0, logits)
  tokens = jitted(Sampling(), jnp.broadcast_to(even, (draws, vocabulary)), keys, positions)
  found, counts = np.unique(np.asarray(tokens), return_counts=True)
  assert set(found) == {0, vocabulary // 2, vocabulary - 1}
  assert np.all(np.abs(counts - draws / len(found)) <= 4 * np.sqrt(draws / len(found)))


def test_no_block_without_weight_is_drawn():
  """Of a large vocabulary, whose sums are rounded: at the noise where a sum grows by nothing."""
  generator = np.random.default_rng(0)
  logits_NxL = generator.normal(scale=3, size=(1002, 128)).astype(np.float32)
  is_empty_N = generator.random(1002) < 0.5
  logits_NxL[is_empty_N] = -np.inf
  weight_N = np.exp(logits_NxL - logits_NxL.max()).sum(axis=1)
  sum_N = np.asarray(jnp.cumsum(weight_N))
  share_N = sum_N[:-1][is_empty_N[1:]] / sum_N[-1]
  draw = jax.jit(lambda share: sample(Sampling(), logits_NxL.reshape(1, -1), share[None])[0])
  tokens = np.array([draw(share) for share in share_N[share_N < 1]])
  assert not is_empty_N[tokens // 128].any()


@pytest.mark.parametrize('temperature', (1e-30, 1e-37, 1e-38, 1e-45, 1e-320))
def test_ever_lower_temperatures_are_greedy(temperature):
  logits = jnp.array([[1.0, 7.0, 50.0, 2.0], [-1.0, -9.0, -9.0, -1.0]])
  for rule in (dict(), dict(top_k=3), dict(top_p=0.9)):
    for share, tie in (0.25, 0), (0.75, 3):  # equally likely tokens stay equally likely
      token_B = sample(Sampling(temperature, **rule), logits, jnp.full(2, share))
      assert token_B.tolist() == [2, tie]


def test_ties_do_not_let_more_tokens_through():
  logits = jnp.zeros((500, 4))
  keys = row_keys(0, jnp.arange(500))
  for sampling in (Sampling(top_k=2), Sampling(top_p=0.5)):
    assert set(np.asarray(jitted(sampling, logits, keys, jnp.zeros(500, int)))) == {0, 1}


def test_noise_is_a_function_of_seed_row_and_position():
  logits = jnp.zeros((1, 1000))

  def draw(seed, row, position):
    keys = row_keys(seed, jnp.array([row]))
    return int(jitted(Sampling(), logits, keys, jnp.array([position]))[0])

  base = draw(1, 2, 3)
  assert base == draw(1, 2, 3)
  assert len({base, draw(2, 2, 3), draw(1, 3, 2), draw(1, 3, 3), draw(1, 2, 4)}) == 5


def test_no_generator_lets_a_row_depend_on_its_neighbours():
  rows, positions = jnp.arange(3), jnp.array([5, 6, 7])
  expected = noise(row_keys(1, rows), positions)
  with jax.default_prng_impl('rbg'):
    np.testing.assert_array_equal(noise(row_keys(1, rows), positions), expected)
    np.testing.assert_array_equal(noise(row_keys(1, rows[1:2]), positions[1:2]), expected[1:2])


@pytest.mark.parametrize(
  'fields',
  [
    dict(temperature=-1),
    dict(temperature=float('nan')),
    dict(top_k=-1),
    dict(top_p=0),
    dict(top_p=1.1),
    dict(top_p=float('nan')),
  ],
)
def test_refused(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}='):
    Sampling(**fields)
