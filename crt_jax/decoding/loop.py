"""The token loop: prompts in, tokens out, by fixed-length scans over `model.step`.

A scan of a known length runs without waiting for the host; the end of a text is checked between
chunks. Shapes depend on the context length, not on the prompt, so a process compiles once for all
its prompts.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax import sharding
from crt_jax.decoding.prepare import empty_state
from crt_jax.decoding.sampling import NOT_FINITE, Sampling, draw, noise, row_keys
from crt_jax.models.base import Model
from crt_jax.models.decode_kernel import check_texts, config_for
from crt_jax.models.inputs import check_positions
from crt_jax.recurrence.state import DecodeState, jit_in_place
from crt_jax.rounding import ceil_div, round_up
from crt_jax.types import Array, Params

PREFILL_CHUNK = 64
STEP_CHUNK = 8  # short, since sequential prefill computes padding like text


class NotFinite(ValueError):
  """Logits that are not finite, from which no token can be drawn."""


def generate(
  model: Model,
  params: dict,
  prompts: Sequence[Sequence[int]],
  num_tokens: int,
  *,
  context: int,
  on_tokens: Callable[[list[list[int]]], None] | None = None,
  **options: Any,
) -> list[list[int]]:
  """Continues every prompt; returns the new tokens of each row, without the prompt.

  Args:
    on_tokens: called with each row's new tokens as they come.
    options: of `stream`, which says what the rest means and what is refused.
  """
  texts = [[] for _ in prompts]
  for new in stream(model, params, prompts, num_tokens, context=context, **options):
    for text, tokens in zip(texts, new, strict=True):
      text.extend(tokens)
    if on_tokens is not None:
      on_tokens(new)
  return texts


def stream(
  model: Model,
  params: dict,
  prompts: Sequence[Sequence[int]],
  num_tokens: int,
  *,
  context: int,
  sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
  seed: int = 0,
  rows: Sequence[int] | None = None,
  stop_tokens: Sequence[int] = (),
  chunk: int = 32,
  prefill: str = 'sequential',
  depth: int | None = None,
) -> Iterator[list[list[int]]]:
  """Yields, chunk by chunk, each row's new tokens ([] for a row that has ended).

  Args:
    params: the model's, or faster as `prepare` returns them.
    prompts: token ids, one list per row, of any lengths.
    num_tokens: at most this many new tokens per row; fewer if it meets a stop token or the context.
    context: prompt and new tokens together; the size of the caches.
    seed, rows: the noise is a function of (seed, row, position); rows are 0, 1, ... by default.
    stop_tokens: end a row; the token itself is not given out.
    chunk: tokens per compiled call. It changes when text arrives, never the text.
    prefill: how the prompt is read, see `Model.prefill`.
    depth: loops of a CART; None = configured.

  Raises:
    ValueError: a prompt that is empty, fills the context or has an id outside the vocabulary; a
      context beyond the positions that the model has learned; texts, or a device, that
      `config.decode_kernel` does not take.
    NotFinite: a row's logits are not finite.
  """
  check_positions(context, model.max_positions)
  check_texts(model.config, len(prompts), params)
  lengths = _checked_lengths(prompts, model.config.vocab_size, context)
  for name, value in (('num_tokens', num_tokens), ('chunk', chunk)):
    if value < 1:
      raise ValueError(f'{name}={value} must be at least 1')
  budgets = np.minimum(num_tokens, context - lengths)
  rows_B = jnp.arange(len(prompts)) if rows is None else jnp.asarray(rows, jnp.int32)
  key_B = row_keys(seed, rows_B)
  # The caches have room for the context rounded up to whole prefill pieces.
  capacity = round_up(context, PREFILL_CHUNK)
  state = empty_state(model, params, len(prompts), capacity, depth)
  state, logits_BxV = _read_prompts(model, params, state, prompts, lengths, capacity, prefill)
  decode_chunk = chunk_decoder(sharding.platform_of(params))
  decode = functools.partial(decode_chunk, model, sampling, chunk, params, key_B)
  longest = int(lengths.max())
  return _run(model, decode, state, logits_BxV, longest, budgets, chunk, frozenset(stop_tokens))


def _run(
  model: Model,
  decode: Callable,
  state: DecodeState,
  logits_BxV: Array,
  longest: int,
  budgets: np.ndarray,
  chunk: int,
  stop_tokens: frozenset[int],
) -> Iterator[list[list[int]]]:
  """Yields the first chunk at once, and each later one while the next is being computed."""
  left = budgets.copy()
  ahead = []
  for number in range(ceil_div(int(budgets.max()), chunk)):
    state, logits_BxV, tokens_BxN = decode(
      model.seeing(state, longest + (number + 1) * chunk), logits_BxV
    )
    ahead.append(tokens_BxN)
    if number == 1:
      continue
    yield _take(ahead.pop(0), left, stop_tokens)
    if not left.any():
      return
  for tokens_BxN in ahead:
    yield _take(tokens_BxN, left, stop_tokens)


def _take(tokens_BxN: Array, left: np.ndarray, stop_tokens: frozenset) -> list[list[int]]:
  """Cuts each row at its token limit and its stop token; updates the limits in `left`."""
  taken = []
  for row, tokens in enumerate(np.asarray(tokens_BxN).tolist()):
    tokens = tokens[: left[row]]
    end = next((i for i, token in enumerate(tokens) if token in stop_tokens), None)
    if NOT_FINITE in tokens[:end]:
      raise NotFinite(
        f'prompt {row}: the logits of the model are not finite, so no token can be drawn; use '
        'another checkpoint, or --dtype=float32'
      )
    left[row] = left[row] - len(tokens) if end is None else 0
    taken.append(tokens[:end])
  return taken


def chunk_decoder(platform: str) -> jax.stages.Wrapped:
  """Returns `_decode_chunk`, jitted for a platform."""
  static, donated = ('model', 'sampling', 'length'), ('state', 'logits_BxV')
  return jit_in_place(_decode_chunk, platform, static, donated)


def _decode_chunk(
  model: Model,
  sampling: Sampling,
  length: int,
  params: Params,
  key_B: Array,
  state: DecodeState,
  logits_BxV: Array,
):
  """Draws and consumes `length` tokens per row; returns state, logits_BxV, tokens_BxN."""

  def one_token(index: Array, carry: tuple[DecodeState, Array, Array]):
    state, logits_BxV, tokens_NxB = carry
    token_B, tokens_NxB = draw(sampling, logits_BxV, noise_NxB, index, tokens_NxB, kernel)
    return *model.step(params, state, token_B), tokens_NxB

  kernel = config_for(model.config, params).decode_kernel
  position_NxB = state.position_B[None] + jnp.arange(length)[:, None]
  noise_NxB = jax.vmap(noise, (None, 0))(key_B, position_NxB)
  tokens_NxB = jnp.zeros(noise_NxB.shape, jnp.int32)
  carry = jax.lax.fori_loop(0, length, one_token, (state, logits_BxV, tokens_NxB))
  return *carry[:2], carry[2].T


def _read_prompts(
  model: Model,
  params: Params,
  state: DecodeState,
  prompts: Sequence[Sequence[int]],
  lengths: np.ndarray,
  capacity: int,
  method: str,
):
  """Returns the state after the prompts and the logits of each, read in pieces of one shape."""
  tokens_BxT = np.zeros((len(prompts), capacity), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BxT[row, : len(prompt)] = prompt
  if method == 'parallel':
    longest = int(lengths.max())
    piece_BxT = tokens_BxT[:, :longest]
    return model.prefill(params, state, piece_BxT, lengths, method=method, donate=True)
  is_stepwise = method == 'sequential' and model.recurs_along_sequence
  chunk = STEP_CHUNK if is_stepwise else PREFILL_CHUNK
  logits_BxV = None
  for start in range(0, int(lengths.max()), chunk):
    piece_BxT = tokens_BxT[:, start : start + chunk]
    new_B = np.clip(lengths - start, 0, chunk)
    state, piece_logits_BxV = model.prefill(
      params, state, piece_BxT, new_B, method=method, chunk=chunk, donate=True
    )
    # A row that ended in an earlier piece keeps the logits it had there.
    if logits_BxV is None:
      logits_BxV = piece_logits_BxV
    else:
      logits_BxV = jnp.where(new_B[:, None] > 0, piece_logits_BxV, logits_BxV)
  assert logits_BxV is not None, 'no prompt is empty'
  return state, logits_BxV


def _checked_lengths(prompts: Sequence[Sequence[int]], vocab_size: int, context: int) -> np.ndarray:
  if not prompts:
    raise ValueError('there is no prompt; give at least one')
  for row, prompt in enumerate(prompts):
    if not len(prompt):
      raise ValueError(f'prompt {row} is empty; give at least one token')
    if len(prompt) >= context:
      raise ValueError(
        f'prompt {row} has {len(prompt)} tokens, which leaves no room in the context of {context}; '
        f'shorten it to {context - 1} or raise the context'
      )
    low, high = min(prompt), max(prompt)
    if low < 0 or high >= vocab_size:
      raise ValueError(
        f'prompt {row} has token {low if low < 0 else high} outside the vocabulary of '
        f'{vocab_size}; is this the tokenizer the model was trained with?'
      )
  return np.array([len(prompt) for prompt in prompts], np.int32)
