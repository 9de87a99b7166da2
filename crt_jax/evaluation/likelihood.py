"""The likelihood of texts given a context, token by token, with few compiled shapes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crt_jax.evaluation.perplexity import Form, hidden_of, one_behind
from crt_jax.models.base import Model
from crt_jax.models.inputs import check_positions, check_tokens
from crt_jax.recurrence.state import jit_in_place
from crt_jax.rounding import ceil_div
from crt_jax.schema.fields import require
from crt_jax.sharding import platform_of
from crt_jax.types import Array, Params

SHORTEST = 32  # positions of the smallest shape

Tokens = Sequence[int]


class Likelihood(NamedTuple):
  """The likelihood of some tokens given the tokens before them.

  Attributes:
    log: the natural logarithm of their probability.
    is_greedy: whether each of them is the likeliest at its place.
  """

  log: float
  is_greedy: bool


def likelihoods(
  model: Model,
  params: Params,
  pairs: Sequence[tuple[Tokens, Tokens]],
  form: Form,
  *,
  context: int,
  batch_size: int = 16,
  after: Callable[[int], object] = lambda rows: None,
) -> list[Likelihood]:
  """Returns the likelihood of the second part of each pair given the first.

  Texts of similar length share a batch. They are padded on the right, which no counted position
  reads, to one of few lengths (`padded_length`); the head reads the scored positions alone, padded
  to 4, 16, 64, ... One program is compiled for each such shape.

  Args:
    pairs: tokens, at least one in each part.
    form: how the model is used.
    context: positions that are read at most; what is too long is cut on the left.
    after: called after each batch with the number of its pairs.

  Raises:
    ValueError: a part without tokens, a second part longer than the context, a context beyond the
      positions that were learned, an id outside the vocabulary, logits that are not finite.
  """
  check_positions(context, model.max_positions)
  rows = [_row(*pair, context) for pair in pairs]
  # The longest first: if memory is too small, that shows at once.
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
  count = min(batch_size, len(rows))
  batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
  padded = [_padded([rows[i] for i in batch], count, context) for batch in batches]
  for tokens_BxT, _, targets_BxS in padded:
    check_tokens(tokens_BxT, model.config.vocab_size)
    check_tokens(targets_BxS, model.config.vocab_size, lowest=-1)
  found: dict[int, Likelihood] = {}
  jitted = jit_in_place(_score, platform_of(params), ('model', 'form'))
  scored = one_behind(
    (batch, *jitted(model, params, *arrays, form))
    for batch, arrays in zip(batches, padded, strict=True)
  )
  for batch, logs_BxS, is_greedy_B in scored:
    log_B = np.asarray(logs_BxS).sum(-1, dtype=np.float64)
    for i, log, is_greedy in zip(batch, log_B, np.asarray(is_greedy_B), strict=False):
      require(
        np.isfinite(log),
        f'text {i}: the logits of the model are not finite, so nothing can be scored; use another '
        'checkpoint',
      )
      found[i] = Likelihood(float(log), bool(is_greedy))
    after(len(batch))
  return [found[i] for i in range(len(rows))]


def padded_length(longest: int, context: int) -> int:
  """Returns the least of 32, 48, 64, 96, 128, 192, ... and the context that holds the positions."""
  power = SHORTEST * 2 ** (ceil_div(longest, SHORTEST) - 1).bit_length()
  between = power * 3 // 4
  return min(context, between if SHORTEST < power and longest <= between else power)


def _row(before: Tokens, scored: Tokens, context: int) -> tuple[list[int], list[int]]:
  """Returns the tokens to read, and those to score behind the last of them."""
  require(len(before) > 0, 'no token stands before what is scored; give at least one')
  require(
    1 <= len(scored) <= context,
    f'{len(scored)} tokens are to be scored at once, and the context has room for 1 to {context}; '
    'shorten the text, or raise the context',
  )
  tokens = [*before, *scored][-(context + 1) :]
  return tokens[:-1], [*scored]


def _padded(
  rows: list[tuple[list[int], list[int]]], count: int, context: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns tokens [B, T], the places that are scored [B, S], and the tokens that follow them.

  A following token is -1 where none counts; rows added to fill the batch score nothing.
  """
  length = padded_length(max(len(tokens) for tokens, _ in rows), context)
  most = max(len(scored) for _, scored in rows)
  slots = min(length, 4 ** max(1, ((most - 1).bit_length() + 1) // 2))
  tokens_BxT = np.zeros((count, length), np.int32)
  places_BxS = np.zeros((count, slots), np.int32)
  targets_BxS = np.full((count, slots), -1, np.int32)
  for i, (tokens, scored) in enumerate(rows):
    tokens_BxT[i, : len(tokens)] = tokens
    places_BxS[i, : len(scored)] = np.arange(len(tokens) - len(scored), len(tokens))
    targets_BxS[i, : len(scored)] = scored
  return tokens_BxT, places_BxS, targets_BxS


def _score(
  model: Model,
  params: Params,
  tokens_BxT: Array,
  places_BxS: Array,
  targets_BxS: Array,
  form: Form,
):
  """Returns the log probability of each target, 0 if none counts, and whether the row is greedy.

  The head runs row by row, so that memory does not hold B*S*V logits.
  """

  def score_row(row: tuple[Array, Array, Array]):
    hidden_TxC, places_S, targets_S = row
    logits_SxV = model.head(params, hidden_TxC[places_S])
    counted_S = targets_S >= 0
    loss_S = optax.softmax_cross_entropy_with_integer_labels(logits_SxV, targets_S * counted_S)
    is_greedy = jnp.all(~counted_S | (jnp.argmax(logits_SxV, axis=-1) == targets_S))
    return jnp.where(counted_S, -loss_S, 0), is_greedy

  hidden_BxTxC = hidden_of(model, params, tokens_BxT, form)
  return jax.lax.map(score_row, (hidden_BxTxC, places_BxS, targets_BxS))
