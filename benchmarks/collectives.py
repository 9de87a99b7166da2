"""Counts what a compiled program sends between devices, from its HLO text.

Loops count as often as they run.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from crt_jax.rounding import ceil_div

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
BITS = {'pred': 8, 'bf16': 16, 'f8e4m3fn': 8, 'f8e5m2': 8, 'token': 0}

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)(?= [a-z])|\S+) ([a-z][\w\-]*)\(')
_ARRAY = re.compile(r'\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'(?:body|calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_CHANNEL = re.compile(r'channel_id=(\d+)')
# What a TPU sends to other slices, through its host.
_TO_SLICES = re.compile(
  r'_xla_megascale_target="\{([\d,:]+)\}.*?_xla_megascale_transfer_type="(\w+)"'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind in a step.

  Attributes:
    count: how often one runs.
    result_bytes: of their results on one device, added up.
    sent_bytes: what one device sends if the algorithm is a ring.
    network_bytes: its share of what its slice of a TPU, or its node of GPUs, sends to the others,
      where those of one slice add up first.
  """

  count: int = 0
  result_bytes: int = 0
  sent_bytes: int = 0
  network_bytes: int = 0

  def __add__(self, other: 'Collective'):
    pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
    return Collective(*(a + b for a, b in pairs))

  def __mul__(self, times: int):
    return Collective(*(times * a for a in dataclasses.astuple(self)))


def collectives(text: str, slices: Sequence[int] = ()) -> dict[str, Collective]:
  """Returns kind -> totals of an HLO module's entry computation and all that it calls.

  Args:
    slices: the slice or node of each device of the mesh, in its order; () where there is but one.

  Raises:
    ValueError: a loop with collectives in it does not say how often it runs.
  """
  bodies, entry, name = {}, '', ''
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      name = start[1]
      bodies[name] = []
      entry = name if line.startswith('ENTRY') else entry
    elif name:
      bodies[name].append(line)
  found = _Module(bodies, slices).total(entry)
  return {kind: found[kind] for kind in KINDS if found[kind].count}


class _Module:
  """The computations of an HLO module, and what each of them sends."""

  def __init__(self, bodies: dict[str, list[str]], slices: Sequence[int]):
    self._bodies, self._slices = bodies, slices
    self._known = {}
    self._seen = collections.Counter()  # collectives of a channel in a computation

  def total(self, name: str) -> dict[str, Collective]:
    """Returns the totals of a computation; loops count as often as they run."""
    channels, loops = self._parts(name)
    found = collections.defaultdict(Collective, loops)
    for kind, each in channels.values():
      found[kind] += each
    return found

  def _parts(self, name: str) -> tuple[dict, dict]:
    """Returns a computation's collectives by channel and number, and the totals of its loops.

    A TPU program writes one collective in several computations, as the stages of a fusion, and
    `shard_map` gives all collectives of a program one channel (so equal ones in two computations
    count as one).
    """
    if name not in self._known:
      channels, loops = {}, collections.defaultdict(Collective)
      for line in self._bodies.get(name, ()):
        self._add(channels, loops, line, name)
      self._known[name] = channels, loops
    return self._known[name]

  def _add(self, channels: dict, loops: dict, line: str, computation: str) -> None:
    instruction = _INSTRUCTION.match(line)
    if instruction is None:
      return
    shape, operation = instruction.groups()
    to_slices = _TO_SLICES.search(line) if operation == 'send' else None
    if to_slices or operation.removesuffix('-start') in KINDS:
      channel = _CHANNEL.search(line)
      channel = channel[1] if channel else computation
      channels[channel, self._seen[computation, channel]] = (
        _between_slices(shape, *to_slices.groups())
        if to_slices
        else _collective(shape, operation, line, computation, self._slices)
      )
      self._seen[computation, channel] += 1
      return
    called = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
      called += re.findall(r'[\w.\-]+', branches)
    for name in called:
      if operation == 'while':
        for kind, each in self.total(name).items():
          if each.count:
            loops[kind] += each * self._trips(line)
        continue
      inner_channels, inner_loops = self._parts(name)
      for key, each in inner_channels.items():
        same = channels.get(key, each) == each
        channels[key if same else (*key, name)] = each
      for kind, each in inner_loops.items():
        loops[kind] += each

  def _trips(self, line: str) -> int:
    """Returns how often a while loop runs.

    It is the count that the loop states, or the range from 0 to the bound of its condition in steps
    of its body.
    """
    if said := _TRIPS.search(line):
      return int(said[1])
    condition = re.findall(r'condition=%?([\w.\-]+)', line)[0]
    text = '\n'.join(self._bodies[condition])
    limits = re.findall(r'= [su]32\[\]\S* constant\((\d+)\)', text)
    counters = re.findall(r'get-tuple-element\(.*?index=(\d+)', text)
    if len(limits) != 1 or len(counters) != 1 or 'direction=LT' not in text:
      raise ValueError(f'the loop with condition {condition} does not say how often it runs')
    body = re.findall(r'body=%?([\w.\-]+)', line)[0]
    return ceil_div(int(limits[0]), self._step(body, int(counters[0])))

  def _step(self, body: str, counter: int) -> int:
    """Returns how much the body of a loop adds to its counter.

    It is not always one: a TPU program may run several iterations in one.
    """
    instructions = dict(filter(None, map(_named, self._bodies[body])))
    root = next(line for line in self._bodies[body] if line.lstrip().startswith('ROOT'))
    raised = instructions[_operands(root)[counter]]
    while ' copy(' in raised:
      raised = instructions[_operands(raised)[0]]
    found = []
    if re.search(r' add\(', raised):
      for constant in (instructions.get(name, '') for name in _operands(raised)):
        found += re.findall(r' constant\((\d+)\)', constant)
    if len(found) != 1:
      raise ValueError(f'the loop with body {body} does not say in which steps it counts')
    return int(found[0])


def _named(line: str) -> tuple[str, str] | None:
  """Returns an instruction by its name."""
  named = re.match(r'^\s*(?:ROOT )?%?([\w.\-]+) = ', line)
  return named and (named[1], line)


def _operands(line: str) -> list[str]:
  """Returns the names that an instruction is applied to."""
  inside = re.search(r' [a-z][\w\-]*\((%[^)]*)\)', line)
  return re.findall(r'%([\w.\-]+)', inside[1]) if inside else []


def _between_slices(shape: str, target: str, transfer: str):
  """Returns kind and size of what a device sends to its counterparts in other slices."""
  kind, others = transfer.lower().replace('_', '-'), len(_numbers(target)) - 1
  [size, *_] = [array_bytes(*array) for array in _ARRAY.findall(shape)]
  result = {'all-gather': size * (others + 1), 'reduce-scatter': size // (others + 1)}
  sent = _sent(kind, result.get(kind, size), others + 1)
  return kind, Collective(1, result.get(kind, size), sent, sent)


def _numbers(text: str) -> list[int]:
  """Returns the numbers of a list or a range: 1,2 or 1:3."""
  ends = [[int(end) for end in part.split(':')] for part in text.split(',')]
  return [number for first, *last in ends for number in range(first, (last or [first])[0] + 1)]


def _collective(shape: str, operation: str, line: str, computation: str, slices: Sequence[int]):
  """Returns kind and size of one instruction."""
  kind = operation.removesuffix('-start')
  size, group = _result_bytes(shape, operation), _group_size(line)
  if 'all-reduce-scatter' in computation:  # how a TPU writes one: an all-reduce, then its slice
    return 'reduce-scatter', Collective(1, size // group, size * (group - 1) // group)
  crossed = len({slices[device] for device in _first_group(line)}) if slices else 1
  each = group // crossed  # devices of a slice that share what it sends
  whole = size * each if kind == 'reduce-scatter' else size
  between = _sent(kind, whole, crossed) // each if crossed > 1 else 0
  return kind, Collective(1, size, _sent(kind, size, group), between)


def _sent(kind: str, size: int, group: int) -> int:
  share = (group - 1) / group
  factor = {
    'all-gather': share,
    'all-reduce': 2 * share,
    'reduce-scatter': group - 1,  # of its result, the smaller side
    'all-to-all': share,
    'collective-permute': 1,
  }[kind]
  return round(factor * size)


def _result_bytes(shape: str, operation: str) -> int:
  arrays = [array_bytes(*array) for array in _ARRAY.findall(shape)]
  if operation in ('all-gather-start', 'reduce-scatter-start'):  # (operands, results)
    arrays = arrays[len(arrays) // 2 :]
  elif operation == 'collective-permute-start':  # (operand, result, contexts)
    arrays = arrays[1:2]
  return sum(arrays)


def array_bytes(dtype: str, dims: str) -> int:
  """Returns the bytes of one array of a shape."""
  bits = BITS[dtype] if dtype in BITS else int(re.findall(r'\d+', dtype)[0])
  size = 1
  for dim in filter(None, dims.split(',')):
    size *= int(dim)
  return size * bits // 8


def _first_group(line: str) -> list[int]:
  """Returns the devices of one collective, by their place in the mesh."""
  if match := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return _numbers(match[1])
  if match := re.search(r'replica_groups=\[\d+,(\d+)\]<=(\S+?),? ', line):
    return _device_ids(match[2]).ravel()[: int(match[1])].tolist()
  named = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{('[\w', ]+)\}", line
  )
  if named:
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    ids = _device_ids(named[2] or f'[{math.prod(sizes.values())}]').reshape(list(sizes.values()))
    return (
      ids[tuple(slice(None if f"'{axis}'" in named[3] else 1) for axis in sizes)].ravel().tolist()
    )
  raise ValueError(f'which devices take part is not read from: {line.strip()[:300]}')


def _device_ids(text: str) -> np.ndarray:
  """Returns [4,8]T(1,0) as the numbers from 0 in that shape, transposed."""
  shape, order = (re.findall(r'\d+', part) for part in f'{text}T'.split('T')[:2])
  ids = np.arange(math.prod(map(int, shape))).reshape([int(size) for size in shape])
  return ids.transpose([int(axis) for axis in order] or None)


def _group_size(line: str) -> int:
  """Returns the number of devices that take part in one collective."""
  if match := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return len(match[1].split(','))
  if match := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(match[1])
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", line):
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    # An axis, or a part of one: 'axis_1':(2)4 are 4 of its devices.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
    return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
  if 'source_target_pairs' in line:
    return 2
  raise ValueError(f'no replica groups in: {line.strip()[:300]}')
