"""Pallas kernels of one decoding step at batch 1: products with what surrounds them, attention.

At batch 1 a step costs the reading of its weights and the starting of its kernels, and XLA starts
several around each product. Written for Triton; `interpret` runs them on a CPU, slowly, for tests.
Sums are in float32, and nothing between two weights is rounded to 16 bits but what is stored.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

from crt_jax.rounding import ceil_div
from crt_jax.types import Array

BLOCKS = 512  # of a product at least, so that each multiprocessor of a large GPU has a few
MOST_ROWS = 16  # of a weight that a block reads
TILE = 4096  # entries of a weight that a block holds at a time
LEAST_COLUMNS = 128  # of it in a block, so that it reads whole lines of memory
SLOTS = 64  # of a cache that a block holds at a time


class Normed(NamedTuple):
  """A norm before a product, see layers/norm.py; `bias` is None for an RMSNorm."""

  scale: Array
  bias: Array | None
  eps: float


@jax.named_scope('row_product')
def product(
  x_K: Array,
  weight_PxOxK: Array,
  bias_PxO: Array | None = None,
  *,
  normed: Normed | None = None,
  activation: str = '',
  onto_O: Array | None = None,
  out_dtype: DTypeLike = jnp.float32,
  interpret: bool = False,
) -> Array:
  """Returns onto + activation(weight norm(x) + bias), [O] in `out_dtype`.

  Args:
    weight_PxOxK: P = 2 for 'swiglu' (gate and up), else 1.
    activation: of layers/feed_forward.py; '' = none.
  """
  parts, outputs, inputs = weight_PxOxK.shape
  rows = min(MOST_ROWS, _power_below(max(1, outputs // BLOCKS)))
  columns = min(power_above(inputs), max(LEAST_COLUMNS, TILE // (rows * parts)))
  vectors = dict(
    x=x_K,
    weight=weight_PxOxK,
    bias=bias_PxO,
    scale=None if normed is None else normed.scale,
    shift=None if normed is None else normed.bias,
    onto=onto_O,
  )
  vectors = {name: a for name, a in vectors.items() if a is not None}

  def row_product(*refs: Any):
    ref = dict(zip(vectors, refs, strict=False))
    row_R = pallas.program_id(0) * rows + jnp.arange(rows)
    is_row_R = row_R < outputs

    mean, factor = 0.0, 1.0
    if normed is not None:
      index_K = jnp.arange(power_above(inputs))
      is_in_K = index_K < inputs
      x = load(ref['x'].at[index_K], is_in_K)
      mean = jnp.sum(x) / inputs if 'shift' in ref else 0.0
      square = jnp.sum(jnp.where(is_in_K, (x - mean) ** 2, 0)) / inputs
      factor = jax.lax.rsqrt(square + normed.eps)

    sums = [jnp.zeros((rows, columns), jnp.float32) for _ in range(parts)]
    for start in range(0, inputs, columns):
      column_C = start + jnp.arange(columns)
      is_in_C = column_C < inputs
      x_C = load(ref['x'].at[column_C], is_in_C)
      if 'scale' in ref:
        x_C = (x_C - mean) * factor * load(ref['scale'].at[column_C], is_in_C)
      if 'shift' in ref:
        x_C = x_C + load(ref['shift'].at[column_C], is_in_C)
      is_in_RxC = is_row_R[:, None] & is_in_C[None]
      for part in range(parts):
        w_RxC = load(ref['weight'].at[part, row_R[:, None], column_C[None]], is_in_RxC)
        sums[part] += w_RxC * x_C[None]
    y = [jnp.sum(each, axis=1) for each in sums]
    if 'bias' in ref:
      y = [each + load(ref['bias'].at[p, row_R], is_row_R) for p, each in enumerate(y)]
    y = ACTIVATIONS[activation](*y)
    if 'onto' in ref:
      y = y + load(ref['onto'].at[row_R], is_row_R)
    store(refs[-1].at[row_R], y, is_row_R)

  return call(
    row_product,
    jax.ShapeDtypeStruct((outputs,), out_dtype),
    ceil_div(outputs, rows),
    interpret,
    *vectors.values(),
  )


@jax.named_scope('row_attention')
def attention(
  qkv_3xHxA: Array,
  turn_2xA: Array | None,
  partner: Callable[[Array], Array],
  k_HxSxA: Array,
  v_HxSxA: Array,
  position: Array,
  window: int,
  interpret: bool = False,
) -> tuple[Array, Array, Array]:
  """Returns softmax attention of one position over the slots before it and itself.

  Args:
    turn_2xA: cosines and signed sines by which queries and keys turn, or None.
    partner: index of an entry of a head -> index of what its sine multiplies.
    k_HxSxA, v_HxSxA: caches of turned keys and of values; of one that is full nothing is written.
    window: number of positions that are seen, itself included; 0 = all.

  Returns: mixed values [H, A], and the caches with the new position, written in place.
  """
  _, heads, width = qkv_3xHxA.shape
  slots, padded = k_HxSxA.shape[1], power_above(width)
  turns = () if turn_2xA is None else (turn_2xA,)

  def row_attention(position_ref: Any, qkv_ref: Any, *refs: Any):
    *turn_refs, k_ref, v_ref, mixed_ref, new_k_ref, new_v_ref = refs
    head, here = pallas.program_id(0), position_ref[0]
    index_A = jnp.arange(padded)
    is_in_A = index_A < width
    partner_A = jnp.where(is_in_A, partner(index_A), 0)

    def new(part: int) -> Array:
      x_A = load(qkv_ref.at[part, head, index_A], is_in_A)
      if part == 2 or not turn_refs:
        return x_A
      other_A = load(qkv_ref.at[part, head, partner_A], is_in_A)
      cos_A, sin_A = (load(turn_refs[0].at[i, index_A], is_in_A) for i in (0, 1))
      return x_A * cos_A + other_A * sin_A

    q_A, k_A, v_A = new(0) * width**-0.5, new(1), new(2)
    first = jnp.maximum(here - window + 1, 0) if window else 0

    def block(number: Array, seen: tuple[Array, Array, Array]):
      highest, total, mixed_A = seen
      slot_S = number * SLOTS + jnp.arange(SLOTS)
      is_seen_S = (slot_S < here) & (slot_S >= first) & (slot_S < slots)
      place = (head, slot_S[:, None], index_A[None])
      is_in_SxA = is_seen_S[:, None] & is_in_A[None]
      score_S = jnp.sum(load(k_ref.at[place], is_in_SxA) * q_A[None], axis=1)
      score_S = jnp.where(is_seen_S, score_S, -jnp.inf)
      above = jnp.maximum(highest, jnp.max(score_S))
      weight_S, kept = jnp.exp(score_S - above), jnp.exp(highest - above)
      values_A = jnp.sum(load(v_ref.at[place], is_in_SxA) * weight_S[:, None], axis=0)
      return above, total * kept + jnp.sum(weight_S), mixed_A * kept + values_A

    last = (jnp.minimum(here, slots) + SLOTS - 1) // SLOTS
    start = (jnp.sum(q_A * k_A), jnp.float32(1), v_A)
    _, total, mixed_A = jax.lax.fori_loop(first // SLOTS, last, block, start)
    store(mixed_ref.at[head, index_A], mixed_A / total, is_in_A)
    has_room_A = is_in_A & (here < slots)
    store(new_k_ref.at[head, here, index_A], k_A, has_room_A)
    store(new_v_ref.at[head, here, index_A], v_A, has_room_A)

  out = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (qkv_3xHxA[0], k_HxSxA, v_HxSxA)]
  before = 2 + len(turns)
  arguments = (position.reshape(1), qkv_3xHxA, *turns, k_HxSxA, v_HxSxA)
  return call(row_attention, out, heads, interpret, *arguments, aliases={before: 1, before + 1: 2})


# ---- activations, in what Triton has -----------------------------------------------------------


def _erf(x: Array) -> Array:
  """Returns XLA's and Eigen's rational error function, to 3 ulp: Triton has none."""
  x = jnp.clip(x, -4, 4)
  top = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
  )  # fmt: skip
  bottom = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
  )  # fmt: skip
  numerator, denominator = (
    functools.reduce(lambda sum, factor: sum * (x * x) + factor, factors)
    for factors in (top, bottom)
  )
  return x * numerator / denominator


def _gelu(x: Array) -> Array:
  return x * 0.5 * (1 + _erf(x * 0.5**0.5))


def _gelu_tanh(x: Array) -> Array:
  return x / (1 + jnp.exp(-2 * (2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _swiglu(gate: Array, up: Array) -> Array:
  return gate / (1 + jnp.exp(-gate)) * up


ACTIVATIONS = {
  '': lambda x: x,
  'gelu': _gelu,
  'gelu_tanh': _gelu_tanh,
  'swiglu': _swiglu,
}


# ---- Pallas ------------------------------------------------------------------------------------


def load(ref: Any, mask: Array, other: float = 0.0) -> Array:
  """Returns the entries in float32, and `other` where the mask is off."""
  return triton.load(ref, mask=mask, other=other).astype(jnp.float32)


def store(ref: Any, value: Array, mask: Array) -> None:
  triton.store(ref, value.astype(ref.dtype), mask=mask)


def call(
  body: Callable[..., None],
  out: Any,
  blocks: int,
  interpret: bool,
  *arguments: Array,
  warps: int = 4,
  aliases: dict[int, int] | None = None,
) -> Any:
  """Runs so many blocks of a kernel on whole arrays; returns what they write."""
  return pallas.pallas_call(
    body,
    out_shape=out,
    grid=(blocks,),
    input_output_aliases=aliases or {},
    compiler_params=triton.CompilerParams(num_warps=warps),
    interpret=interpret,
  )(*arguments)


def power_above(value: int) -> int:
  """Returns the least power of two that is at least `value`: Triton's arrays have no other size."""
  return 1 << (value - 1).bit_length()


def _power_below(value: int) -> int:
  return 1 << (value.bit_length() - 1)
