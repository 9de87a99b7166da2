"""Counts the kernels that a compiled program starts, from its text."""

import re

# Operations that start no kernel, or only contain other computations.
FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all while call conditional '
  'opt-barrier partition-id replica-id'.split()
)
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.\-]+ = (?:\([^=]*?\)|\S+) ([\w\-]+)\(')


def launches(text: str) -> int:
  """Returns the kernels that one run of an HLO module starts; loops count as often as they run.

  Args:
    text: `compiled.as_text()`.

  Raises:
    ValueError: a loop whose trip count is not known to the compiler.
  """
  bodies, entry = computations(text)
  return count(bodies, entry)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns name -> lines of every computation, and the name of the entry."""
  found, entry, lines = {}, '', []
  # Long tuples carry comments, which would break the line into an assignment too many.
  for line in re.sub(r'/\*.*?\*/', '', text).splitlines():
    if match := _HEAD.match(line):
      lines = found.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
    elif _INSTRUCTION.match(line):
      lines.append(line)
  return found, entry


def count(bodies: dict[str, list[str]], name: str) -> int:
  """Returns the kernels that one run of a computation starts, see `launches`."""
  total = 0
  for line in bodies[name]:
    operation = _INSTRUCTION.findall(line)[0]
    if operation == 'while':
      trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
      if trips is None:
        raise ValueError(f'a loop of unknown length: {line.strip()[:100]}')
      total += int(trips[1]) * count(bodies, re.findall(r'body=%?([\w.\-]+)', line)[0])
    elif operation == 'call':
      total += count(bodies, re.findall(r'to_apply=%?([\w.\-]+)', line)[0])
    elif operation == 'conditional':
      branches = re.findall(r'branch_computations=\{([^}]*)\}', line)[0].split(',')
      total += max(count(bodies, branch.strip().lstrip('%')) for branch in branches)
    elif operation not in FREE:
      total += 1
  return total
