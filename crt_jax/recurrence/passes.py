"""The recurrence along the sequence: each position's input is prepared by its predecessor's output.

Three drivers: `unroll` (all positions in parallel, K passes), which holds the mathematics,
`chunked` (stretches of c positions in sequence, each unrolled) and `sequential` (exact). spec:
crt.md sections 3 to 5.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crt_jax.recurrence.backward import Loop
from crt_jax.recurrence.probes import gradient_probe, loop_statistics
from crt_jax.recurrence.state import DecodeState, advance, varying_as
from crt_jax.rounding import ceil_div
from crt_jax.types import Array, Tree


class Recurrence(NamedTuple):
  """The pure functions whose alternation is the model.

  Attributes:
    block: x_BxTxC, past, key -> z_BxTxC, entries.
    summary: z_BxTxC, x_BxTxC, key -> s, what a position hands to its successor: any tree of arrays
      [B, T, ...]; a vector, s_BxTxC, in this project's CRTs.
    inject: s_prev, e_BxTxC, x_BxTxC, key, cache -> x_next_BxTxC, entries; cache is what its own
      attention or recurrence, if any, reads of earlier positions, None in parallel passes.
    shift: whether position t reads the summary of t-1 (True) or its own (self-inclusive).
    scan: runs the passes but the last, see scan.py.
  """

  block: Callable
  summary: Callable
  inject: Callable
  shift: bool = True
  scan: Callable = jax.lax.scan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Passes:
  """The outcome of K passes over T positions.

  Attributes:
    z_BxTxC: the last pass's block output.
    x_BxTxC: the last pass's input, x^(K).
    x_next_BxTxC: the input that a further pass would read, x^(K+1).
    summary: the last pass's summaries, [B, T, ...].
    entries: what the positions add to each cache; {} without caches.
    statistics: of x^(k+1) against x^(k), k = 1..K-1 (probes.loop_statistics); {} if not requested.
  """

  z_BxTxC: Array
  x_BxTxC: Array
  x_next_BxTxC: Array
  summary: Any
  entries: dict
  statistics: dict


class Before(NamedTuple):
  """The passes that further ones continue from: number, last summaries and inputs."""

  count: int
  summary: Any
  x_BxTxC: Array


def unroll(
  recurrence: Recurrence,
  e_BxTxC: Array,
  depth: int,
  start: str = 'embedding',
  key: Array | None = None,
  probe_K: Array | None = None,
  state: DecodeState | None = None,
  before: Before | None = None,
) -> Passes:
  """Refines the inputs of T positions by K parallel passes (crt.md 3).

  Args:
    e_BxTxC: embeddings, dropped out once for all passes.
    depth: number of block passes K >= 1; K = 1 of the embedding corrects nothing.
    start: first input, 'embedding' (x = e) or 'corrected' (from the carried summary, zero inside).
    key: dropout key, or None for none; pass k draws from fold_in(key, k), k = 1..K.
    probe_K: zeros [depth - 1] if statistics are wanted; their gradients are the squared norms of
      the gradients at x^(2) .. x^(K).
    state: what the earlier positions left behind; None at the start of a sequence.
    before: continues after these passes, and their number, instead of from `start`.
  """

  def refine(carry: tuple[Array, Tree], pass_input: tuple[Array, Array | None]):
    k, probe = pass_input
    x_BxTxC, _ = carry
    _, _, x_next_BxTxC, entries = one_pass(recurrence, e_BxTxC, x_BxTxC, state, _split(key, k))
    statistics = {}
    if probe is not None:
      x_next_BxTxC = gradient_probe(x_next_BxTxC, probe)
      statistics = loop_statistics(x_next_BxTxC, x_BxTxC)
    return (x_next_BxTxC, entries['correction']), statistics

  first, s, x_BxTxC = before or Before(0, _no_summary(recurrence, e_BxTxC), e_BxTxC)
  x_BxTxC, entries = recurrence.inject(
    _previous(recurrence, s, state),
    e_BxTxC,
    x_BxTxC,
    _split(key, first)[2],
    _past(state, 'correction'),
  )
  if before is None and start == 'embedding':
    x_BxTxC = e_BxTxC
  statistics = {}
  if depth > 1:
    numbers = first + jnp.arange(1, depth)
    # Each pass overwrites the entries, so those of the first input need not be computed.
    unread = varying_as(x_BxTxC, jax.tree.map(jnp.zeros_like, entries))
    carry, statistics = recurrence.scan(refine, (x_BxTxC, unread), (numbers, probe_K))
    x_BxTxC, entries = carry
  # The backward pass needs the last pass first, so recomputing it would save no memory.
  z_BxTxC, s, x_next_BxTxC, last_entries = one_pass(
    recurrence, e_BxTxC, x_BxTxC, state, _split(key, first + depth)
  )
  entries = {'block': last_entries['block'], 'correction': entries}
  entries = {name: value for name, value in entries.items() if value is not None}
  return Passes(z_BxTxC, x_BxTxC, x_next_BxTxC, s, entries, statistics)


def one_pass(
  recurrence: Recurrence,
  e_BxTxC: Array,
  x_BxTxC: Array,
  state: DecodeState | None,
  keys: tuple,
) -> tuple[Array, Any, Array, dict]:
  """Runs one pass over T positions; returns z_BxTxC, s, x_next_BxTxC and new cache entries.

  Args:
    keys: dropout keys of block, summary and inject, or three times None.
  """
  block_key, summary_key, inject_key = keys
  z_BxTxC, block_entries = recurrence.block(x_BxTxC, _past(state, 'block'), block_key)
  s = recurrence.summary(z_BxTxC, x_BxTxC, summary_key)
  s_prev = _previous(recurrence, s, state)
  x_next_BxTxC, entries = recurrence.inject(
    s_prev, e_BxTxC, x_BxTxC, inject_key, _past(state, 'correction')
  )
  return z_BxTxC, s, x_next_BxTxC, {'block': block_entries, 'correction': entries}


def correction_map(recurrence: Recurrence, e_BxTxC: Array) -> Callable:
  """Returns the map x^(k) -> x^(k+1) that the parallel passes iterate, without dropout."""
  return lambda x_BxTxC: one_pass(recurrence, e_BxTxC, x_BxTxC, None, (None,) * 3)[2]


def chunked(
  recurrence: Recurrence,
  read: Callable[[Passes], Any],
  state: DecodeState,
  e_BxTxC: Array,
  lengths_B: Array | None,
  chunk: int,
  depth: int,
  start: str,
  key: Array | None = None,
  loop: Loop = jax.lax.scan,
) -> tuple[DecodeState, Any]:
  """Refines chunks of `chunk` positions in sequence, each by `depth` passes over its past.

  It is exact if depth >= chunk + 1 (start 'embedding') or depth >= chunk (start 'corrected').

  Args:
    read: what to return of a chunk's passes, arrays [B, c, ...], such as what the head reads.
    lengths_B: number of positions that count in each row; the rest is padding without any effect.
      None: all T; the returned state is then after the padding of the last chunk, so of no use.
    chunk: a T that it does not divide is padded, which changes nothing that counts.
    loop: a loop of backward.py, which decides what the backward pass stores; `replay` takes no
      lengths.

  Returns: the state after the last counted position, and what was read, [B, T, ...].
  """
  length = e_BxTxC.shape[1]
  count = ceil_div(length, chunk)
  e_BxTxC = jnp.pad(e_BxTxC, ((0, 0), (0, count * chunk - length), (0, 0)))
  batch, _, width = e_BxTxC.shape
  state = varying_as(e_BxTxC, state)
  e_JxBxcxC = jnp.moveaxis(e_BxTxC.reshape(batch, count, chunk, width), 1, 0)
  j_J = jnp.arange(count, dtype=jnp.int32)
  key_J = None if key is None else jax.vmap(lambda j: jax.random.fold_in(key, j))(j_J)
  new_JxB = None
  if lengths_B is not None:
    new_JxB = jnp.clip(lengths_B[None] - chunk * j_J[:, None], 0, chunk)

  def one_chunk(state: DecodeState, chunk_input: tuple[Array, Array | None, Array | None]):
    e_BxcxC, new_B, chunk_key = chunk_input
    done = unroll(recurrence, e_BxcxC, depth, start, chunk_key, state=state)
    return advance(state, done.entries, done.summary, new_B), read(done)

  state, h_JxBxc = loop(one_chunk, state, (e_JxBxcxC, new_JxB, key_J))

  def join(h_JxBxc: Array):
    h_BxJxc = jnp.moveaxis(h_JxBxc, 0, 1)
    return h_BxJxc.reshape(batch, count * chunk, *h_JxBxc.shape[3:])[:, :length]

  return state, jax.tree.map(join, h_JxBxc)


def sequential(
  recurrence: Recurrence,
  read: Callable[[Passes], Any],
  state: DecodeState,
  e_BxTxC: Array,
  lengths_B: Array | None,
  key: Array | None = None,
  loop: Loop = jax.lax.scan,
) -> tuple[DecodeState, Any]:
  """Runs the exact recurrence, one pass per position from the corrected input (crt.md 4)."""
  return chunked(recurrence, read, state, e_BxTxC, lengths_B, 1, 1, 'corrected', key, loop)


def _past(state: DecodeState | None, name: str):
  return None if state is None else state.past(name)


def _no_summary(recurrence: Recurrence, e_BxTxC: Array) -> Tree:
  """Returns the summaries of positions that no pass has reached."""
  found = jax.eval_shape(recurrence.summary, e_BxTxC, e_BxTxC)
  return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), found)


def _previous(recurrence: Recurrence, s: Tree, state: DecodeState | None) -> Tree:
  """Returns the summary each position reads; the first position reads the state's summary."""
  if not recurrence.shift:
    return s
  last = jax.tree.map(lambda a: jnp.zeros_like(a[:, 0]), s) if state is None else state.recurrent
  return jax.tree.map(lambda a, b: jnp.concatenate([a[:, None], b[:, :-1]], axis=1), last, s)


def _split(key: Array | None, k: Array | int) -> tuple:
  return (None,) * 3 if key is None else tuple(jax.random.split(jax.random.fold_in(key, k), 3))
