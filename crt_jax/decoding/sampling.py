"""How a token is drawn from logits: greedy, temperature, top-k, top-p; pure, on the device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from crt_jax.keys import random_key
from crt_jax.models.decode_kernel import is_single_row
from crt_jax.types import Array

BLOCK = 128  # tokens whose probabilities are summed first
NOT_FINITE = -1  # in place of a token, if logits are not finite


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The sampling rule; static under jit, so a disabled setting costs nothing.

  Applied in this order, each to what the one before has left:

  Attributes:
    temperature: divides the logits; 0 takes the most likely token and ignores the other two. One
      that float32 cannot hold is the nearest that it can.
    top_k: only the k most likely tokens; 0 = all.
    top_p: the fewest tokens, most likely first, whose probabilities reach p; 1 = all.
    vocab_size: only ids below it, for a model whose vocabulary is padded; 0 = all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  vocab_size: int = 0

  def __post_init__(self):
    if not 0 <= self.temperature < float('inf'):
      raise ValueError(f'temperature={self.temperature} must be 0 (greedy) or a positive number')
    if self.top_k < 0:
      raise ValueError(f'top_k={self.top_k} must be 0 (all tokens) or a positive number')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p={self.top_p} must lie in (0, 1]; 1 keeps all tokens')


def row_keys(seed: int | Array, rows_B: Array) -> Array:
  """Returns one key per row, fold_in(key(seed), row), so neighbours do not affect a row."""
  return jax.vmap(jax.random.fold_in, (None, 0))(random_key(seed), rows_B)


def noise(key_B: Array, position_B: Array) -> Array:
  """Returns one number in [0, 1) per row: a function of (seed, row, position) alone.

  So neither the length of the chunks in which a text is generated nor the other rows of the batch
  can change it, and it can be drawn before the logits exist.

  Args:
    key_B: from `row_keys`.
    position_B: index in its row of the token that is drawn.
  """
  keys = jax.vmap(jax.random.fold_in)(key_B, position_B)
  return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys)


def draw(
  sampling: Sampling,
  logits_BxV: Array,
  noise_NxB: Array,
  index: Array,
  tokens_NxB: Array,
  kernel: str = 'xla',
) -> tuple[Array, Array]:
  """Draws a token of each row, as `sample` does, with the noise at `index`.

  Returns them, and all tokens with them at `index`: NOT_FINITE in rows whose logits give none.

  Args:
    kernel: `config.decode_kernel`, for which a single row without cuts is one kernel.
  """
  is_whole = sampling.temperature > 0 and not sampling.top_k and sampling.top_p == 1
  if is_whole and is_single_row(kernel, logits_BxV):
    from crt_jax.decoding import draw_kernel

    rule = draw_kernel.Rule(
      sampling.vocab_size or logits_BxV.shape[1], temperature_of(sampling), BLOCK, NOT_FINITE
    )
    token_1, tokens_N = draw_kernel.draw(
      rule, logits_BxV[0], noise_NxB[:, 0], tokens_NxB[:, 0], index, kernel == 'interpreted'
    )
    return token_1, tokens_N[:, None]
  token_B = sample(sampling, logits_BxV, jax.lax.dynamic_index_in_dim(noise_NxB, index, 0, False))
  is_finite_B = jnp.isfinite(jnp.max(logits_BxV, axis=-1))
  kept_B = jnp.where(is_finite_B, token_B, NOT_FINITE)
  return token_B, jax.lax.dynamic_update_index_in_dim(tokens_NxB, kept_B, index, 0)


def sample(sampling: Sampling, logits_BxV: Array, noise_B: Array) -> Array:
  """Draws one token per row.

  Args:
    logits_BxV: float32 or wider.
    noise_B: from `noise`; a greedy rule does not read it.

  Returns: token_B, int32.
  """
  if sampling.vocab_size:
    logits_BxV = logits_BxV[:, : sampling.vocab_size]
  if sampling.temperature == 0:
    return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
  # The likeliest token is at 0 before it is divided, so no temperature makes it infinite.
  logits_BxV = logits_BxV - jnp.max(logits_BxV, axis=-1, keepdims=True)
  scaled_BxV = logits_BxV / temperature_of(sampling)
  return jax.vmap(functools.partial(_draw, sampling))(scaled_BxV, noise_B)


def temperature_of(sampling: Sampling) -> float:
  """Returns what logits are divided by, within what float32 can hold."""
  limits = jnp.finfo(jnp.float32)
  return min(max(sampling.temperature, float(limits.tiny)), float(limits.max))


def _draw(sampling: Sampling, logits_V: Array, noise: Array) -> Array:
  """Draws a token index from logits whose largest is 0."""
  vocabulary = logits_V.shape[0]
  candidates = min(sampling.top_k or vocabulary, vocabulary)
  if candidates == vocabulary and sampling.top_p == 1:
    return _inverse_cdf(jnp.exp(logits_V), noise)
  # Sorted, so that both cuts are prefixes; ties go to the lower id.
  logits_k, token_k = jax.lax.top_k(logits_V, candidates)
  probability_k = jax.nn.softmax(logits_k)
  before_k = jnp.cumsum(probability_k) - probability_k
  weight_k = jnp.where(before_k < sampling.top_p, probability_k, 0)
  return token_k[_inverse_cdf(weight_k, noise)].astype(jnp.int32)


def _inverse_cdf(weight_V: Array, noise: Array) -> Array:
  """Returns the first index with a positive weight where the summed weights exceed a share of all.

  `jax.random.categorical` draws noise for every token and takes two logarithms of it: 0.9 ms a row
  of 32,000 on 2 CPU cores, where a step is 20 ms; this takes 0.1. The sums are taken over blocks,
  then inside one.
  """
  weight_NxL = jnp.pad(weight_V, (0, -weight_V.size % BLOCK)).reshape(-1, BLOCK)
  sum_N = _running_sums(jnp.sum(weight_NxL, axis=-1))
  target = noise.astype(weight_V.dtype) * sum_N[-1]
  passed_N = _passed(sum_N, target)
  block, before = jnp.sum(passed_N), jnp.max(jnp.where(passed_N, sum_N, 0))
  inside = jnp.sum(_passed(_running_sums(weight_NxL[block]), target - before))
  return (block * BLOCK + inside).astype(jnp.int32)


def _running_sums(weight_N: Array) -> Array:
  """Returns the running sums of the weights by one reduction; `jnp.cumsum` is slower on GPUs.

  On a GPU `jnp.cumsum` is three kernels. All sums are rounded in the same order, so they never fall
  and only grow where a weight is added.
  """
  index_N = jnp.arange(weight_N.size)
  return jnp.sum(jnp.where(index_N[None] <= index_N[:, None], weight_N[None], 0), axis=-1)


def _passed(sum_N: Array, target: Array) -> Array:
  """Returns which running sums do not exceed the target; the last to grow always does."""
  return (sum_N <= target) & (sum_N < sum_N[-1])
