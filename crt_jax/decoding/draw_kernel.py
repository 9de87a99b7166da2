"""The draw of a token in one Pallas kernel, where XLA makes seven (layers/row_kernels.py)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crt_jax.layers.row_kernels import call, load, power_above
from crt_jax.rounding import ceil_div
from crt_jax.types import Array


class Rule(NamedTuple):
  """How a token is drawn, see decoding/sampling.py.

  Attributes:
    tokens: how many of the logits count.
    temperature: divides them.
    block: tokens whose probabilities are summed first.
    none: what is drawn where the logits are not finite.
  """

  tokens: int
  temperature: float
  block: int
  none: int


def draw(
  rule: Rule, logits_V: Array, noise_N: Array, tokens_N: Array, index: Array, interpret: bool
) -> tuple[Array, Array]:
  """Draws the first token [1] at which the summed probabilities exceed the share noise_N[index].

  Returns it, and tokens_N with it at `index`, written in place.
  """
  block = rule.block

  def row_draw(*refs: Any):
    logits_ref, noise_ref, _, index_ref, token_ref, tokens_ref = refs

    def logits(index: Array) -> Array:
      return load(logits_ref.at[index], index < rule.tokens, -jnp.inf)

    def weights(index: Array) -> Array:
      return jnp.exp((logits(index) - top) / rule.temperature)

    inside_L, blocks = jnp.arange(block), power_above(ceil_div(rule.tokens, block))
    index_NxL = jnp.arange(blocks)[:, None] * block + inside_L[None]
    top = jnp.max(logits(index_NxL))
    sum_N = jnp.sum(weights(index_NxL), axis=1)
    running_N = jnp.cumsum(sum_N)
    target = noise_ref[index_ref[0]] * jnp.max(running_N)
    passed_N = _passed(running_N, target)
    start = _count(passed_N) * block
    target -= jnp.max(jnp.where(passed_N, running_N, 0))
    token = start + _count(_passed(jnp.cumsum(weights(start + inside_L)), target))
    is_finite = jnp.abs(jnp.sum(sum_N)) < jnp.inf
    token_ref[0] = tokens_ref[index_ref[0]] = jnp.where(is_finite, token, rule.none)

  out = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1,), tokens_N.shape)]
  arguments = (logits_V, noise_N, tokens_N, index.reshape(1))
  return call(row_draw, out, 1, interpret, *arguments, warps=16, aliases={2: 1})


def _passed(running_N: Array, target: Array) -> Array:
  return (running_N <= target) & (running_N < jnp.max(running_N))


def _count(is_true_N: Array) -> Array:
  return jnp.sum(is_true_N.astype(jnp.int32))
