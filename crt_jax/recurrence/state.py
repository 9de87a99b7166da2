"""What a model carries from one stretch of a sequence to the next: caches and recurrent state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from crt_jax.types import Array, Past, Tree

SEEN = 256  # the smallest number of cache slots that is read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
  """A part of a cache that each position replaces: an LSTM's pair, a shift register.

  Attributes:
    value: any tree of arrays with an axis of rows. The entries of T new positions are a Carry too,
      of the values after each position, with an axis of positions next to that of the rows.
    axis: the axis of the rows (static); 1 if layers are stacked before it.
  """

  value: Any
  axis: int = dataclasses.field(default=0, metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
  """In place of the entries of one new position: the slots with these already in place.

  They may stand there though the position does not count: behind it a state holds nothing.
  """

  slots: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """The state of a model after the positions it has read.

  Attributes:
    caches: named trees of arrays [N, B, H, S, A] with one slot per position, append-only; slots
      from position_B on are empty. If `trailing`, the S latest positions, oldest first. A part that
      each position replaces, instead of appending to it, is a `Carry`.
    recurrent: the summary of the last position, any tree of arrays [B, ...] (before the first
      position an initial value); None for a model without recurrence along the sequence.
    position_B: number of positions read, per row; of length 1 if it is the same in all rows.
    depth: recurrent passes per position (static), or None.
    trailing: the caches drop what windowed attention no longer reads (static).
    seen: how many slots are read, see `seeing` (static); None = all.
  """

  caches: dict[str, Any]
  recurrent: Any
  position_B: Array
  depth: int | None = dataclasses.field(default=None, metadata=dict(static=True))
  trailing: bool = dataclasses.field(default=False, metadata=dict(static=True))
  seen: int | None = dataclasses.field(default=None, metadata=dict(static=True))

  def past(self, name: str | None = None) -> Past | None:
    """Returns what attention reads: (cache, position_B), and for trailing caches a third element.

    The third element is the position in slot 0, below 0 while slot 0 is empty. Returns None if the
    cache `name` does not exist; without a name it covers all caches.
    """
    caches = self.caches if name is None else self.caches.get(name)
    return None if caches is None else (self._seen(caches), *self._place)

  def seeing(self, end: int) -> 'DecodeState':
    """Returns a state that reads few cache slots while the text is at most `end` positions long.

    A token then costs what its position needs, not what was allocated. The number of slots read is
    SEEN, four times SEEN and so on, since each number compiles a program of its own.
    """
    slots, capacity = SEEN, self.capacity
    while slots < end:
      slots *= 4
    is_less = capacity is not None and slots < capacity and not self.trailing
    return dataclasses.replace(self, seen=slots if is_less else None)

  def _seen(self, caches: Any) -> Any:
    if self.seen is None:
      return caches
    return jax.tree.map(
      lambda part: part if is_carry(part) else part[:, :, :, : self.seen], caches, is_leaf=is_carry
    )

  @property
  def _place(self) -> tuple[Array, *tuple[Array, ...]]:
    """The positions that accompany every cache in `past`."""
    slots = self.capacity if self.trailing else None
    return (self.position_B,) if slots is None else (self.position_B, self.position_B - slots)

  def widened(self, stream_dtype: DTypeLike) -> 'DecodeState':
    """Returns the state in float64 if `stream_dtype` is float64, else unchanged."""
    if stream_dtype != jnp.float64:
      return self
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, self)

  @property
  def capacity(self) -> int | None:
    """The number of positions the caches can hold; None if the caches have no slots."""
    slots = jax.tree.leaves(apart(self.caches, is_slots, is_carry)[0])
    return slots[0].shape[3] if slots else None


def advance(
  state: DecodeState,
  entries: dict[str, Any],
  summaries: Any,
  lengths_B: Array | None,
) -> DecodeState:
  """Returns the state after the first lengths_B of T new positions; length 0 changes nothing.

  Args:
    entries: for each cache the new positions' arrays [N, B, H, T, A], Written, or Carry of their
      values.
    summaries: the new positions' summaries [B, T, ...], or None without recurrence.
    lengths_B: of length 1 if position_B is. None: all T positions, for which the caches have room;
      rows at the same position are then written as one stretch.
  """
  if lengths_B is not None:
    lengths_B = lengths_B.astype(state.position_B.dtype)
  put = _shift if state.trailing else functools.partial(_append, position_B=state.position_B)

  def take_in(old: Array | Carry, new: Tree):
    if isinstance(new, Written):
      return new.slots
    if isinstance(old, Carry):
      return _replace(old, jax.tree.map(lambda a, b: b.astype(a.dtype), old, new), lengths_B)
    return put(old, new.astype(old.dtype), lengths_B)

  caches = {
    name: jax.tree.map(take_in, state.caches[name], new, is_leaf=is_carry)
    for name, new in entries.items()
  }
  summaries = Carry(summaries)
  recurrent = _replace(Carry(state.recurrent), summaries, lengths_B).value
  new_B = _length((entries, summaries)) if lengths_B is None else lengths_B
  return dataclasses.replace(
    state, caches=caches, recurrent=recurrent, position_B=state.position_B + new_B
  )


def is_carry(part: object) -> bool:
  return isinstance(part, Carry)


def is_slots(part: object) -> bool:
  """Returns whether a part of a cache appends an entry per position (else it is a `Carry`)."""
  return not is_carry(part)


def apart(tree: Tree, is_first: Callable, is_leaf: Callable | None = None) -> tuple:
  """Splits a tree in two by `is_first`; each result has None where the other has a value."""
  first = jax.tree.map(lambda a: a if is_first(a) else None, tree, is_leaf=is_leaf)
  rest = jax.tree.map(lambda a: None if is_first(a) else a, tree, is_leaf=is_leaf)
  return first, rest


def together(first: Tree, rest: Tree) -> Tree:
  """Returns the tree that `apart` has split."""
  return jax.tree.map(lambda a, b: b if a is None else a, first, rest, is_leaf=lambda a: a is None)


def varying_as(x: Array, tree: Tree) -> Tree:
  """Returns the tree with every array varying over a `jax.shard_map`'s devices as x does.

  A scan that makes x part of its state has to start from such a state. Elsewhere nothing changes.
  """
  zero = jnp.zeros_like(x, shape=())

  def cast(a: Array):
    varying = a + zero.astype(a.dtype)
    return a if jax.typeof(varying) == jax.typeof(a) else varying

  return jax.tree.map(cast, tree)


def unshared(tree: Tree) -> Tree:
  """Returns the tree with a copy of each array that occurs twice, as zeros of a new state may.

  XLA cannot donate the same array twice.
  """
  seen = set()

  def own(a: Array) -> Array:
    if id(a) in seen:
      return jnp.copy(a)
    seen.add(id(a))
    return a

  return jax.tree.map(own, tree)


@functools.cache
def jit_in_place(
  function: Callable, platform: str | None, static_argnames: tuple = (), donate_argnames: tuple = ()
) -> jax.stages.Wrapped:
  """Returns `jax.jit` of a function, such that on this platform it writes caches in place.

  XLA:CPU would copy each cache before it writes one position into it: 7 of 34 ms a token for 12
  layers of width 768 and 512 slots (jax 0.10.2, 2 cores). The option exists in jax 0.10 to 0.12.
  With platform None the function is called inside another one that is compiled or differentiated,
  where JAX accepts no compiler options and cannot donate buffers.
  """
  options = {'xla_cpu_copy_insertion_use_region_analysis': True} if platform == 'cpu' else None
  return jax.jit(
    function,
    static_argnames=static_argnames,
    donate_argnames=donate_argnames if platform else (),
    compiler_options=options,
  )


def leaving(caches: Tree, length: int) -> Tree:
  """Returns the oldest slots of trailing caches, which the next `length` positions push out."""
  return jax.tree.map(lambda a: a[:, :, :, :length], caches)


def rewind(caches: Tree, left: Tree) -> Tree:
  """Returns trailing caches before they dropped the slots `left`."""

  def back(a: Array, b: Array):
    return jnp.concatenate([b, a], axis=3)[:, :, :, : a.shape[3]]

  return jax.tree.map(back, caches, left)


def take_position(x: Array, index_B: Array | None, axis: int = 1) -> Array:
  """Returns row b's element at position index_B[b], at index_B[0] in all rows, or at the last.

  Args:
    x: an array with positions on `axis`, next to the rows: [B, T, ...].
  """
  before = (slice(None),) * axis
  if index_B is None:
    return x[*before, -1]
  if index_B.shape[0] == 1:
    return jax.lax.dynamic_index_in_dim(x, index_B[0], axis=axis, keepdims=False)
  index = jnp.expand_dims(index_B, [i for i in range(x.ndim) if i != axis - 1])
  return jnp.take_along_axis(x, index, axis=axis)[*before, 0]


def _replace(old: Carry, new: Carry, lengths_B: Array | None) -> Carry:
  """Returns the values after the first lengths_B positions; rows of length 0 keep the old ones."""
  axis = old.axis + 1

  def latest(a: Array, b: Array):
    candidates = jnp.concatenate([jnp.expand_dims(a, axis), b], axis=axis)
    return take_position(candidates, lengths_B, axis)

  return Carry(jax.tree.map(latest, old.value, new.value), old.axis)


def _length(entries: Tree) -> int:
  """Returns the number of new positions."""
  part = jax.tree.leaves(entries, is_leaf=lambda part: isinstance(part, Carry | Written))[0]
  if isinstance(part, Written):
    return 1
  return jax.tree.leaves(part)[0].shape[part.axis + 1 if is_carry(part) else 3]


def _append(
  cache_NxBxHxSxA: Array, entries_NxBxHxTxA: Array, lengths_B: Array | None, position_B: Array
) -> Array:
  """Writes the first lengths_B entries of each row after its position; drops what does not fit."""
  if lengths_B is None and position_B.shape[0] == 1:
    return jax.lax.dynamic_update_slice_in_dim(
      cache_NxBxHxSxA, entries_NxBxHxTxA, position_B[0], axis=3
    )
  batch, length = entries_NxBxHxTxA.shape[1], entries_NxBxHxTxA.shape[3]
  index_1xT = jnp.arange(length)[None, :]
  slot_BxT = position_B[:, None] + index_1xT
  if lengths_B is not None:
    nowhere = cache_NxBxHxSxA.shape[3]
    slot_BxT = jnp.where(index_1xT < lengths_B[:, None], slot_BxT, nowhere)
  row_Bx1 = jnp.arange(batch)[:, None]
  # Indexed dimensions come first in the values that are written: [B, T, N, H, A].
  entries_BxTxNxHxA = jnp.moveaxis(entries_NxBxHxTxA, (1, 3), (0, 1))
  return cache_NxBxHxSxA.at[:, row_Bx1, :, slot_BxT].set(entries_BxTxNxHxA, mode='drop')


def _shift(cache_NxBxHxSxA: Array, entries_NxBxHxTxA: Array, lengths_B: Array | None) -> Array:
  """Shifts the cache by lengths_B entries, and appends that many new ones."""
  slots, length = cache_NxBxHxSxA.shape[3], entries_NxBxHxTxA.shape[3]
  both = jnp.concatenate([cache_NxBxHxSxA, entries_NxBxHxTxA], axis=3)
  if lengths_B is None:
    return both[:, :, :, length:]
  if lengths_B.shape[0] == 1:
    return jax.lax.dynamic_slice_in_dim(both, lengths_B[0], slots, axis=3)
  slot_BxS = lengths_B[:, None] + jnp.arange(slots)[None, :]
  return jnp.take_along_axis(both, slot_BxS[None, :, None, :, None], axis=3)
