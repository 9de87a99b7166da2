"""What a compiled program sends between devices, read from its HLO text: counts and bytes, loops
counted as often as they run."""

import collections
import dataclasses
import re

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
BITS = {'pred': 8, 'bf16': 16, 'f8e4m3fn': 8, 'f8e5m2': 8, 'token': 0}

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)(?= [a-z])|\S+) ([a-z][\w\-]*)\(')
_ARRAY = re.compile(r'\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'(?:body|calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind, over all that a step does.

  Attributes:
    count: how often one runs.
    result_bytes: of their results on one device, added up.
    sent_bytes: what one device sends if the algorithm is a ring.
  """

  count: int = 0
  result_bytes: int = 0
  sent_bytes: int = 0

  def __add__(self, other):
    pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
    return Collective(*(a + b for a, b in pairs))

  def __mul__(self, times: int):
    return Collective(*(times * a for a in dataclasses.astuple(self)))


def collectives(text: str) -> dict[str, Collective]:
  """Kind -> what the entry computation of an HLO module does of it, through all that it calls.

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
  known = {}

  def total(name: str) -> dict[str, Collective]:
    if name not in known:
      known[name] = collections.defaultdict(Collective)
      for line in bodies.get(name, ()):
        _add(known[name], line, name, total)
    return known[name]

  return {kind: total(entry)[kind] for kind in KINDS if total(entry)[kind].count}


def _add(found: dict, line: str, computation: str, total) -> None:
  """Adds what one instruction does and calls."""
  instruction = _INSTRUCTION.match(line)
  if instruction is None:
    return
  shape, operation = instruction.groups()
  kind = operation.removesuffix('-start')
  if kind in KINDS:
    size, group = _result_bytes(shape, operation), _group_size(line)
    if 'all-reduce-scatter' in computation:  # how a TPU writes one: an all-reduce, then its slice
      found['reduce-scatter'] += Collective(1, size // group, size * (group - 1) // group)
    else:
      found[kind] += Collective(1, size, _sent(kind, size, group))
  called = _CALLED.findall(line)
  for branches in _BRANCHES.findall(line):
    called += re.findall(r'[\w.\-]+', branches)
  times = 1
  if operation == 'while':
    trips = _TRIPS.search(line)
    times = int(trips[1]) if trips else 0
  for name in called:
    for kind, each in list(total(name).items()):
      if each.count and not times:
        raise ValueError(f'the loop over {name} does not say how often it runs')
      found[kind] += each * times


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
  arrays = [_array_bytes(*array) for array in _ARRAY.findall(shape)]
  if operation == 'all-gather-start':  # (operands, results)
    arrays = arrays[len(arrays) // 2 :]
  elif operation == 'collective-permute-start':  # (operand, result, contexts)
    arrays = arrays[1:2]
  return sum(arrays)


def _array_bytes(dtype: str, dims: str) -> int:
  bits = BITS[dtype] if dtype in BITS else int(re.search(r'\d+', dtype)[0])
  size = 1
  for dim in filter(None, dims.split(',')):
    size *= int(dim)
  return size * bits // 8


def _group_size(line: str) -> int:
  """How many devices take part in one collective."""
  if match := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return len(match[1].split(','))
  if match := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(match[1])
  if match := re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', line):
    sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", match[1]))
    size = 1
    for axis in re.findall(r"'?(\w+)'?", match[2]):
      size *= int(sizes[axis])
    return size
  if 'source_target_pairs' in line:
    return 2
  raise ValueError(f'no replica groups in: {line.strip()[:300]}')
