"""Flash attention that drops attention weights: a hash draws the mask, forward and backward.

With p = softmax(scale q k), a mask m of zeros and ones and the rate r, y = (m p / (1 - r)) v. No
array of T x T is stored: the backward pass computes p and m anew, block by block (algorithms 2 and
4 of arXiv 2205.14135). Written for Triton; `interpret` runs it on a CPU, slowly, for tests.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas
from jax.experimental.pallas import triton

from crt_jax.layers.attention_kernels import FUSED_ATTENTION
from crt_jax.layers.row_kernels import call, power_above
from crt_jax.rounding import ceil_div
from crt_jax.types import Array

BLOCK, LEAST = 64, 16  # positions of a tile, and the least that Triton multiplies
UNSEEN = -1e30  # a score that weighs nothing; finite, since a block may hold no other


class Options(NamedTuple):
  """What is known when a kernel is compiled.

  Attributes:
    window: positions that each position sees, itself included; 0 = all before it.
    rate: share of the weights that is dropped.
  """

  scale: float
  window: int = 0
  rate: float = 0.0
  interpret: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
  q_BxTxHxA: Array, k_BxTxGxA: Array, v_BxTxGxA: Array, seed_BxH: Array, options: Options
) -> Array:
  """Returns causal softmax attention within one sequence, [B, T, H, A] in the dtype of q.

  Args:
    k_BxTxGxA, v_BxTxGxA: H is a multiple of G; each is read by H / G heads. Values may have another
      width than keys.
    seed_BxH: uint32; equal seeds drop equal weights.
  """
  return _forward(q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, seed_BxH, options)[0]


@jax.named_scope('flash_attention')
def _forward(q: Array, k: Array, v: Array, seed: Array, options: Options):
  size = Sizes.of(q, k, v)
  out = [
    jax.ShapeDtypeStruct((*q.shape[:3], v.shape[-1]), q.dtype),
    jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32),
  ]
  blocks = q.shape[0] * q.shape[2] * size.blocks
  body = functools.partial(_forward_kernel, size, options)
  mixed, lse = call(body, out, blocks, options.interpret, q, k, v, seed)
  saved = [checkpoint_name(a, FUSED_ATTENTION) for a in (mixed, lse)]
  return saved[0], (q, k, v, seed, *saved)


@jax.named_scope('flash_attention')
def _backward(options: Options, saved: tuple[Array, ...], dy: Array):
  q, k, v, seed, mixed, lse = saved
  size = Sizes.of(q, k, v)
  wide = dy.astype(jnp.float32), mixed.astype(jnp.float32)
  delta_BxHxT = jnp.sum(wide[0] * wide[1], axis=-1).swapaxes(1, 2)
  arguments = (q, k, v, seed, dy, lse, delta_BxHxT)
  body = functools.partial(_query_gradient_kernel, size, options)
  like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (q, k, v)]
  blocks = q.shape[0] * q.shape[2] * size.blocks
  dq = call(body, like[0], blocks, options.interpret, *arguments)
  body = functools.partial(_key_gradient_kernel, size, options)
  blocks = k.shape[0] * k.shape[2] * size.blocks
  dk, dv = call(body, like[1:], blocks, options.interpret, *arguments)
  return dq, dk, dv, None


attention.defvjp(_forward, _backward)


# ---- kernels -----------------------------------------------------------------------------------


class Sizes(NamedTuple):
  length: int
  heads: int
  groups: int
  width: int  # of keys
  out_width: int  # of values
  block: int

  @classmethod
  def of(cls, q: Array, k: Array, v: Array) -> 'Sizes':
    _, length, heads, width = q.shape
    block = min(BLOCK, max(LEAST, power_above(length)))
    return cls(length, heads, k.shape[2], width, v.shape[-1], block)

  @property
  def blocks(self) -> int:
    """Tiles of a sequence."""
    return ceil_div(self.length, self.block)

  @property
  def shared(self) -> int:
    """Query heads that read one head of keys."""
    return self.heads // self.groups

  def positions(self, number: Array) -> Array:
    return number * self.block + jnp.arange(self.block)

  def place(self, heads: int) -> tuple[Array, Array, Array]:
    """Returns row, head and tile of this program."""
    number = pallas.program_id(0)
    rest = number // self.blocks
    return rest // heads, rest % heads, number % self.blocks


def _forward_kernel(size: Sizes, options: Options, *refs: Any) -> None:
  q_ref, k_ref, v_ref, seed_ref, mixed_ref, lse_ref = refs
  row, head, number = size.place(size.heads)
  group = head // size.shared
  query_Q = size.positions(number)
  q = _tiles(q_ref, row, query_Q, head, size.width, size.length)
  salt_Q = _salt(seed_ref, row, head, query_Q)

  def block(other: Array, so_far: tuple[Array, Array, list[Array]]):
    highest_Q, total_Q, mixed = so_far
    key_K = size.positions(other)
    k = _tiles(k_ref, row, key_K, group, size.width, size.length)
    v = _tiles(v_ref, row, key_K, group, size.out_width, size.length)
    score_QxK = _scores(q, k, query_Q, key_K, size, options)
    above_Q = jnp.maximum(highest_Q, jnp.max(score_QxK, axis=1))
    weight_QxK, left_Q = jnp.exp(score_QxK - above_Q[:, None]), jnp.exp(highest_Q - above_Q)
    total_Q = total_Q * left_Q + jnp.sum(weight_QxK, axis=1)
    weight_QxK = _dropped(weight_QxK, salt_Q, key_K, options)
    mixed = [
      m * left_Q[:, None] + _dot(weight_QxK.astype(x.dtype), x)
      for m, x in zip(mixed, v, strict=True)
    ]
    return above_Q, total_Q, mixed

  start = jnp.full(size.block, UNSEEN, jnp.float32), jnp.zeros(size.block, jnp.float32)
  bounds = _first_block(number, size, options), number + 1
  highest_Q, total_Q, mixed = jax.lax.fori_loop(
    *bounds, block, (*start, _zeros(size.block, size.out_width))
  )
  mixed = [m / total_Q[:, None] for m in mixed]
  _store_tiles(mixed_ref, mixed, row, query_Q, head, size.out_width, size.length)
  is_in_Q = query_Q < size.length
  triton.store(lse_ref.at[row, head, query_Q], highest_Q + jnp.log(total_Q), mask=is_in_Q)


def _query_gradient_kernel(size: Sizes, options: Options, *refs: Any) -> None:
  *inputs, dq_ref = refs
  _, k_ref, v_ref = inputs[:3]
  row, head, number = size.place(size.heads)
  group = head // size.shared
  query_Q = size.positions(number)
  queries = _queries(inputs, row, query_Q, head, size)

  def block(other: Array, dq: list[Array]):
    key_K = size.positions(other)
    k = _tiles(k_ref, row, key_K, group, size.width, size.length)
    v = _tiles(v_ref, row, key_K, group, size.out_width, size.length)
    _, dscore_QxK = _gradients(queries, k, v, query_Q, key_K, size, options)
    return [d + _dot(dscore_QxK.astype(x.dtype), x) for d, x in zip(dq, k, strict=True)]

  bounds = _first_block(number, size, options), number + 1
  dq = jax.lax.fori_loop(*bounds, block, _zeros(size.block, size.width))
  dq = [d * options.scale for d in dq]
  _store_tiles(dq_ref, dq, row, query_Q, head, size.width, size.length)


def _key_gradient_kernel(size: Sizes, options: Options, *refs: Any) -> None:
  *inputs, dk_ref, dv_ref = refs
  _, k_ref, v_ref = inputs[:3]
  row, group, number = size.place(size.groups)
  key_K = size.positions(number)
  k = _tiles(k_ref, row, key_K, group, size.width, size.length)
  v = _tiles(v_ref, row, key_K, group, size.out_width, size.length)
  end = size.blocks
  if options.window:
    farthest = (number + 1) * size.block + options.window - 2
    end = jnp.minimum(farthest // size.block + 1, end)
  count = end - number

  def block(step: Array, gradients: tuple[list[Array], list[Array]]):
    dk, dv = gradients
    head, query_Q = group * size.shared + step // count, size.positions(number + step % count)
    queries = _queries(inputs, row, query_Q, head, size)
    kept_QxK, dscore_QxK = _gradients(queries, k, v, query_Q, key_K, size, options)
    dk = [d + _dot(dscore_QxK.astype(x.dtype), x, True) for d, x in zip(dk, queries.q, strict=True)]
    dv = [d + _dot(kept_QxK.astype(x.dtype), x, True) for d, x in zip(dv, queries.dy, strict=True)]
    return dk, dv

  start = _zeros(size.block, size.width), _zeros(size.block, size.out_width)
  dk, dv = jax.lax.fori_loop(0, size.shared * count, block, start)
  dk = [d * options.scale for d in dk]
  _store_tiles(dk_ref, dk, row, key_K, group, size.width, size.length)
  _store_tiles(dv_ref, dv, row, key_K, group, size.out_width, size.length)


class Queries(NamedTuple):
  """What the backward pass reads of a tile of queries."""

  q: list[Array]
  dy: list[Array]
  salt_Q: Array
  lse_Q: Array
  delta_Q: Array


def _queries(inputs: list, row: Array, query_Q: Array, head: Array, size: Sizes) -> Queries:
  q_ref, _, _, seed_ref, dy_ref, lse_ref, delta_ref = inputs
  is_in_Q = query_Q < size.length
  return Queries(
    _tiles(q_ref, row, query_Q, head, size.width, size.length),
    _tiles(dy_ref, row, query_Q, head, size.out_width, size.length),
    _salt(seed_ref, row, head, query_Q),
    triton.load(lse_ref.at[row, head, query_Q], mask=is_in_Q, other=0.0),
    triton.load(delta_ref.at[row, head, query_Q], mask=is_in_Q, other=0.0),
  )


def _gradients(
  queries: Queries,
  k: list[Array],
  v: list[Array],
  query_Q: Array,
  key_K: Array,
  size: Sizes,
  options: Options,
) -> tuple[Array, Array]:
  """Returns m p / (1 - r), and the gradient by the scores."""
  score_QxK = _scores(queries.q, k, query_Q, key_K, size, options)
  weight_QxK = jnp.exp(score_QxK - queries.lse_Q[:, None])
  dweight_QxK = _inner(queries.dy, v)
  dweight_QxK = _dropped(dweight_QxK, queries.salt_Q, key_K, options)
  kept_QxK = _dropped(weight_QxK, queries.salt_Q, key_K, options)
  return kept_QxK, weight_QxK * (dweight_QxK - queries.delta_Q[:, None])


# ---- parts of them -----------------------------------------------------------------------------


def _first_block(number: Array, size: Sizes, options: Options) -> Array | int:
  """Returns the first tile of keys that a tile of queries sees."""
  if not options.window:
    return 0
  return jnp.maximum(number * size.block - options.window + 1, 0) // size.block


def _scores(
  q: list[Array], k: list[Array], query_Q: Array, key_K: Array, size: Sizes, options: Options
) -> Array:
  query_Qx1, key_1xK = query_Q[:, None], key_K[None]
  is_seen_QxK = (key_1xK <= query_Qx1) & (query_Qx1 < size.length)
  if options.window:
    is_seen_QxK &= query_Qx1 - key_1xK < options.window
  return jnp.where(is_seen_QxK, _inner(q, k) * options.scale, UNSEEN)


def _dropped(x_QxK: Array, salt_Q: Array, key_K: Array, options: Options) -> Array:
  """Returns x m / (1 - r)."""
  if not options.rate:
    return x_QxK
  return jnp.where(is_kept(salt_Q, key_K, options.rate), x_QxK / (1 - options.rate), 0.0)


def is_kept(salt_Q: Array, key_K: Array, rate: float) -> Array:
  """Returns the mask m of `salt`s, of which each query of each head has one."""
  bits_QxK = _mixed(salt_Q[:, None] ^ key_K.astype(jnp.uint32)[None])
  return bits_QxK >= jnp.uint32(round(rate * 2**32))


def salts(seed: Array, query_Q: Array) -> Array:
  return _mixed(seed + query_Q.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))


def _salt(seed_ref: Any, row: Array, head: Array, query_Q: Array) -> Array:
  return salts(seed_ref[row, head], query_Q)


def _mixed(x: Array) -> Array:
  """Returns 32 bits that each depend on all of x: Wellons' `lowbias32`."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def pieces(width: int) -> list[tuple[int, int]]:
  """Returns (start, size) of what holds a head: sizes are powers of two, as Triton's are.

  A head of 70 is then multiplied as 64 + 16 columns, not as 128.
  """
  whole = max(LEAST, power_above(width))
  half = whole // 2
  rest = max(LEAST, power_above(width - half)) if width > half else 0
  return [(0, half), (half, rest)] if rest and half + rest < whole else [(0, whole)]


def _zeros(rows: int, width: int) -> list[Array]:
  return [jnp.zeros((rows, columns), jnp.float32) for _, columns in pieces(width)]


def _at(
  ref: Any,
  row: Array,
  position_P: Array,
  head: Array,
  piece: tuple[int, int],
  width: int,
  length: int,
) -> tuple[Any, Array]:
  index_A = piece[0] + jnp.arange(piece[1])
  is_in = (position_P < length)[:, None] & (index_A < width)[None]
  return ref.at[row, position_P[:, None], head, index_A[None]], is_in


def _tiles(
  ref: Any, row: Array, position_P: Array, head: Array, width: int, length: int
) -> list[Array]:
  """Returns a head at some positions, [P, columns] for each of its pieces."""
  places = (_at(ref, row, position_P, head, piece, width, length) for piece in pieces(width))
  return [triton.load(place, mask=is_in, other=0.0) for place, is_in in places]


def _store_tiles(
  ref: Any, tiles: list[Array], row: Array, position_P: Array, head: Array, width: int, length: int
) -> None:
  for tile, piece in zip(tiles, pieces(width), strict=True):
    place, is_in = _at(ref, row, position_P, head, piece, width, length)
    triton.store(place, tile.astype(ref.dtype), mask=is_in)


def _inner(a: list[Array], b: list[Array]) -> Array:
  """Returns a b^T, summed over the pieces of a head."""
  return functools.reduce(operator.add, (_dot(x, y.T) for x, y in zip(a, b, strict=True)))


def _dot(a: Array, b: Array, turned: bool = False) -> Array:
  """Returns a b, or a^T b, in float32; float32 is not rounded to TF32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  contracted = (0 if turned else 1,), (0,)
  return jax.lax.dot_general(
    a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32
  )
