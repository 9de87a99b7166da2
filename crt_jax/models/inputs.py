"""Checks of a model's inputs: bad values raise ValueError, or give NaN under tracing."""

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax.recurrence.state import DecodeState
from crt_jax.schema.fields import require
from crt_jax.types import AnyArray, Array


def check_tokens(tokens: AnyArray, vocab_size: int, lowest: float = 0) -> None:
  """Raises ValueError for a token id outside the vocabulary; under jit the embedding is NaN."""
  if is_traced(tokens) or not getattr(tokens, 'is_fully_addressable', True):
    return
  tokens = np.asarray(tokens)
  for token in (tokens.min(initial=0), tokens.max(initial=0)):
    require(
      lowest <= token < vocab_size,
      f'token {token} lies outside the vocabulary of {vocab_size}; is this the tokenizer the model '
      'was trained with?',
    )


def is_traced(*arrays: object) -> bool:
  return any(isinstance(a, jax.core.Tracer) for a in arrays)


def padded_with_zeros(tokens_BxT: AnyArray, lengths_B: AnyArray, columns: int) -> AnyArray:
  """Returns the tokens that count, padded with zeros to so many columns.

  Tokens known on the host are padded there, so that no prompt length causes a compilation.
  """
  xp = jnp if is_traced(tokens_BxT, lengths_B) else np
  tokens_BxT = xp.asarray(tokens_BxT)
  tokens_BxT = xp.pad(tokens_BxT, ((0, 0), (0, columns - tokens_BxT.shape[1])))
  return xp.where(np.arange(columns)[None] < lengths_B[:, None], tokens_BxT, 0)


def check_lengths(lengths_B: AnyArray, batch: int, length: int) -> None:
  """Raises ValueError unless each row has that many tokens; traced lengths are not checked."""
  require(
    lengths_B.shape == (batch,),
    f'lengths_B has shape {lengths_B.shape}; it needs one length per row, ({batch},)',
  )
  if is_traced(lengths_B):
    return
  shortest, longest = lengths_B.min(), lengths_B.max()
  require(
    0 <= shortest and longest <= length,
    f'lengths_B runs from {shortest} to {longest}; each row has 0 to {length} tokens',
  )


def check_positions(length: int, most: int) -> None:
  """Raises ValueError if a text is longer than the learned positions; 0 means no limit."""
  require(
    not most or length <= most,
    f'text of {length} positions: model.max_positions={most} were learned; use at most {most}',
  )


def check_room(state: DecodeState, new_B: AnyArray | int, max_positions: int) -> None:
  """Raises ValueError unless the state has room for new_B tokens; traced values are not checked."""
  limit = _limit(state, max_positions)
  if limit is None or is_traced(state.position_B, new_B):
    return
  end = (np.asarray(state.position_B) + new_B).max()
  check_positions(end, max_positions)
  require(
    end <= limit,
    f'text that ends at position {end} does not fit a state of max_len={limit}; '
    f'make it with decode_state(batch, max_len={end}) or more',
  )


def nan_past_the_end(state: DecodeState, hidden_BxC: Array, max_positions: int) -> Array:
  """Returns hidden states with NaN in rows whose last tokens exceed caches or positions."""
  limit = _limit(state, max_positions)
  if limit is None:
    return hidden_BxC
  return jnp.where((state.position_B <= limit)[:, None], hidden_BxC, jnp.nan)


def none_past_the_end(state: DecodeState, token_B: AnyArray, max_positions: int) -> AnyArray:
  """Returns the tokens, with -1 in rows that have no room for one more: its embedding is NaN."""
  limit = _limit(state, max_positions)
  if limit is None or not is_traced(state.position_B):
    return token_B
  return jnp.where(state.position_B < limit, token_B, -1)


def _limit(state: DecodeState, max_positions: int) -> int | None:
  """Returns how many positions fit the caches and the learned positions; None without a limit."""
  limits = (None if state.trailing else state.capacity, max_positions or None)
  return min((limit for limit in limits if limit is not None), default=None)
