"""Reads what a program compiled for a GPU does, from its text: kernels, moves, bytes by part.

Bytes are those of a kernel's operands and results, of which a slice or an update in place counts
what it touches. Loops inside count as often as they run.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.collectives import array_bytes
from benchmarks.profile_parts import part_of
from experiments.latency.launches import FREE, computations

MOVED = 1 << 16  # bytes from which a copy or transpose is listed
UPDATES = {'dynamic-update-slice': 1, 'scatter': 2}  # in place -> which operand is written

_THUNK = re.compile(r'^(\s*)\d+: (k\w+)')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\((.*)$'
)


class Instruction(NamedTuple):
  """One line of a computation."""

  is_root: bool
  name: str
  shape: str
  operation: str
  operands: list[str]
  line: str

  def called(self, role: str) -> str:
    """Returns the computation that it calls as `role`, such as 'body'; '' where there is none."""
    found = re.search(rf'\b{role}=%?([\w.\-]+)', self.line)
    return found[1] if found else ''


class Kernels(NamedTuple):
  """The number of thunks: in the body of the first loop, outside it, and groups in a CUDA graph."""

  in_loop: int
  outside: int
  command_buffers: int


def kernels(thunks: str) -> Kernels:
  """Counts the lines of XLA's `thunk_sequence*.txt`: kernels, library calls and copies.

  A loop inside the loop counts once; its condition and what wraps a slice count too.
  """
  is_inside, counts = False, collections.Counter()
  for indent, kind in filter(None, map(_thunk, thunks.splitlines())):
    is_inside = (is_inside and bool(indent)) or kind == 'kWhile'
    if kind == 'kCommandBuffer':
      counts[kind] += 1
    elif kind != 'kWhile':
      counts[is_inside] += 1
  return Kernels(counts[True], counts[False], counts['kCommandBuffer'])


def _thunk(line: str) -> tuple[str, str] | None:
  found = _THUNK.match(line)
  return found and (found[1], found[2])


class Program:
  """An optimised HLO module."""

  def __init__(self, text: str):
    """`text`: of `compiled.as_text()`."""
    lines, self.entry = computations(text)
    self.lines = lines
    self.bodies = {name: list(filter(None, map(_parsed, body))) for name, body in lines.items()}

  def token_loop(self) -> str:
    """Returns the body of the loop that the entry runs."""
    return next(
      each.called('body') for each in self.bodies[self.entry] if each.operation == 'while'
    )

  def moves(self) -> list[dict]:
    """Returns copies and transposes of MOVED bytes or more: where, name and bytes."""
    return [
      dict(where=where, name=each.name, bytes=shape_bytes(each.shape))
      for name, where in ((self.entry, 'outside'), *((name, 'loop') for name in self._loops()))
      for each in self.bodies[name]
      if re.search('copy|transpose', each.name)
      and each.operation in ('copy', 'fusion', 'transpose')
      and shape_bytes(each.shape) >= MOVED
    ]

  def bytes_by_part(self, name: str) -> dict[str, int]:
    """Returns part of the model -> bytes that one run of a computation moves, most first."""
    found = collections.Counter()
    for kernel, times, shapes in self._kernels(name):
      found[self._part(kernel)] += times * (self._read(kernel, shapes) + self._written(kernel))
    return dict(found.most_common())

  def _loops(self) -> list[str]:
    return [
      each.called('body')
      for body in self.bodies.values()
      for each in body
      if each.operation == 'while'
    ]

  def _kernels(self, name: str, times: int = 1) -> Iterator[tuple[Instruction, int, dict]]:
    """Yields every kernel of a computation, its number of runs, and the shapes it may read."""
    shapes = {each.name: each.shape for each in self.bodies[name]}
    for each in self.bodies[name]:
      if each.operation == 'while':
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', each.line)
        yield from self._kernels(each.called('body'), times * int(trips[1] if trips else 1))
      elif each.operation == 'call':
        yield from self._kernels(each.called('to_apply'), times)
      elif each.operation not in FREE:
        yield each, times, shapes

  def _part(self, kernel: Instruction) -> str:
    source = re.search(r'op_name="([^"]*)"', kernel.line)
    inside = self.bodies.get(kernel.called('calls'), [])
    if source is None and any(each.operation == 'dot' for each in inside):
      return 'matrix products in several parts'  # of which XLA keeps no name
    return part_of(kernel.name, source[1] if source else '')

  def _read(self, kernel: Instruction, shapes: dict[str, str]) -> int:
    inside = self.bodies.get(kernel.called('calls'), [])
    arguments = {
      each.line.split('parameter(')[1].split(')')[0]: each.name
      for each in inside
      if each.operation == 'parameter'
    }
    total = 0
    for index, name in enumerate(kernel.operands):
      whole = shape_bytes(shapes.get(name, ''))
      argument = arguments.get(str(index))
      total += whole if argument is None else min(whole, _touched(inside, argument, whole))
    return total

  def _written(self, kernel: Instruction) -> int:
    inside = {each.name: each for each in self.bodies.get(kernel.called('calls'), [])}
    root = next((each for each in inside.values() if each.is_root), None)
    if root is None:
      return shape_bytes(kernel.shape)
    results = root.operands if root.operation == 'tuple' else [root.name]
    return sum(_result_bytes(inside, name) for name in results)


def shape_bytes(shape: str) -> int:
  """Returns the bytes of an array, or of all arrays in a tuple."""
  return sum(
    array_bytes(*array) for array in re.findall(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]', shape)
  )


def _parsed(line: str) -> Instruction | None:
  found = _INSTRUCTION.match(line)
  if found is None:
    return None
  operands = re.findall(r'%([\w.\-]+)', found[5].split('), ')[0])
  return Instruction(bool(found[1]), found[2], found[3], found[4], operands, line)


def _touched(inside: list[Instruction], name: str, whole: int) -> int:
  """Returns how much of an argument a fused computation reads."""
  total = 0
  for user in (each for each in inside if name in each.operands):
    if user.operation in ('slice', 'dynamic-slice', 'gather') and user.operands[0] == name:
      total += shape_bytes(user.shape)
    elif user.operation == 'bitcast':
      total += _touched(inside, user.name, whole)
    elif user.operation not in UPDATES or user.operands[0] != name:
      return whole
  return total


def _result_bytes(inside: dict[str, Instruction], name: str) -> int:
  """Returns the bytes that a fused computation writes; for an update in place, its update."""
  each = inside[name]
  while each.operation == 'bitcast' and each.operands[0] in inside:
    each = inside[each.operands[0]]
  # A scatter into anything but an argument writes a new array.
  is_new = each.operation == 'scatter' and inside[each.operands[0]].operation != 'parameter'
  if each.operation in UPDATES and not is_new:
    return shape_bytes(inside[each.operands[UPDATES[each.operation]]].shape)
  return shape_bytes(each.shape)
