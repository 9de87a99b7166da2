"""Which slice of which parameter each array of another format is, and conversion both ways.

Linear weights are [out, in] here, q|k|v and gate|up are fused and layers are stacked, so an array
elsewhere is one slice of one parameter, or its transpose.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Slot:
  """The place of an array of another format in our parameters.

  Attributes:
    name: its name there.
    path: keys to the parameter.
    index: the slice of that parameter, leading axes only.
    merged: number of leading axes of the slice that are one axis there ([H, A, C] is [C, C]); 0 if
      the shapes agree. Negative: trailing axes ([C, H, A] is [C, C]).
    transposed: the matrix is [in, out] there.
    again: it repeats another slot, may be left out, and must be equal if given.
    optional: no published array; a gain of ones where it is left out.
  """

  name: str
  path: tuple[str, ...]
  index: tuple[int, ...] = ()
  merged: int = 0
  transposed: bool = False
  again: bool = False
  optional: bool = False

  def given_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that a slice of `shape` has in the other format."""
    if self.merged > 0:
      shape = (int(np.prod(shape[: self.merged])), *shape[self.merged :])
    elif self.merged < 0:
      shape = (*shape[: self.merged], int(np.prod(shape[self.merged :])))
    return shape[::-1] if self.transposed else shape

  def turned(self, array: np.ndarray) -> np.ndarray:
    """Returns a matrix in the layout of the other side."""
    return array.T if self.transposed else array


def read_params(
  slots: Sequence[Slot], arrays: Mapping[str, np.ndarray], abstract: Params
) -> Params:
  """Returns the parameters made of arrays, which are read parameter by parameter.

  Args:
    slots: with every name that must be there, see `check_names`.
    abstract: shape, dtype and, unless None, sharding of each parameter.

  Raises:
    ValueError: misshapen or unequal repeated arrays.
  """
  slots_of: dict[tuple, list[Slot]] = {}
  for slot in sorted(slots, key=lambda slot: slot.again):
    slots_of.setdefault(slot.path, []).append(slot)

  def parameter(path: tuple, spec: jax.ShapeDtypeStruct):
    filled = np.empty(spec.shape, spec.dtype)
    for slot in slots_of[tuple(key.key for key in path)]:
      _fill(filled[slot.index], slot, arrays)
    return jnp.asarray(filled) if spec.sharding is None else jax.device_put(filled, spec.sharding)

  return jax.tree_util.tree_map_with_path(parameter, abstract)


def _fill(target: np.ndarray, slot: Slot, arrays: Mapping[str, np.ndarray]) -> None:
  if slot.name not in arrays:
    if slot.optional:
      target[...] = 1
    return
  array = np.asarray(arrays[slot.name])
  wanted = slot.given_shape(target.shape)
  if array.shape != wanted:
    raise ValueError(f'array {slot.name!r} has shape {array.shape}; the model needs {wanted}')
  array = slot.turned(array).reshape(target.shape)
  if slot.again and not np.array_equal(array.astype(target.dtype), target):
    raise ValueError(f'array {slot.name!r} differs from the one that it is tied to')
  target[...] = array


def arrays_of(slots: Iterable[Slot], params: Params) -> dict[str, np.ndarray]:
  """Returns the inverse of `read_params`; tied arrays are listed once."""
  arrays = {}
  for slot in slots:
    if not slot.again:
      part = params
      for key in slot.path:
        part = part[key]
      part = np.asarray(part)[slot.index]
      shape = slot.given_shape(part.shape)
      arrays[slot.name] = slot.turned(part.reshape(shape[::-1] if slot.transposed else shape))
  return arrays


def check_names(slots: Sequence[Slot], names: Iterable[str], kind: str = 'arrays') -> None:
  """Raises ValueError, with `kind` as their name, unless the names are those of the slots."""
  given, known = set(names), {slot.name for slot in slots}
  required = {slot.name: None for slot in slots if not (slot.again or slot.optional)}
  missing = [name for name in required if name not in given]
  for found, what in ((missing, 'missing'), (sorted(given - known), 'unexpected')):
    if found:
      more = f' and {len(found) - 3} more' if len(found) > 3 else ''
      raise ValueError(f'{what} {kind}: {", ".join(found[:3])}{more}')
