"""Strict JSON: reads with one-line errors, writes atomically and without NaN and Infinity."""

import contextlib
import json
import math
import pathlib
from typing import Any

from crt_jax import storage


def parse(text: str | bytes) -> Any:
  """Returns the value of a JSON text, given as str or UTF-8 bytes.

  Raises:
    ValueError: it is none, or Python's reader gives up on it; says why in a few words.
  """
  try:
    return json.loads(text if isinstance(text, str) else text.decode('utf-8'))
  except json.JSONDecodeError as error:
    reason = f'{error.msg} at column {error.colno}'
  except UnicodeDecodeError as error:
    reason = f'byte {error.start} is not UTF-8'
  except ValueError:
    reason = 'a number has too many digits'
  except RecursionError:
    reason = 'it is nested too deeply'
  raise ValueError(reason)


def parse_lines(path: str | pathlib.Path) -> list:
  """Returns the values of a file of JSON lines; ValueError names file and line."""
  found = []
  for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), start=1):
    try:
      found.append(parse(line))
    except ValueError as error:
      raise ValueError(f'{path}, line {number}: not JSON ({error}); remove it') from None
  return found


def dumps(value: Any, **options: Any) -> str:
  """Returns the JSON of a value, with null for every number that is not finite.

  Args:
    options: of json.dumps.
  """
  return json.dumps(_finite(value), allow_nan=False, **options)


def write(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file atomically, with null as `dumps` has it."""
  storage.write_file(path, (dumps(value, indent=2) + '\n').encode('utf-8'))


def read(path: pathlib.Path, default: Any = None) -> Any:
  """Returns the value of a JSON file; the default if it is missing or cannot be read."""
  try:
    return parse(path.read_bytes())
  except (OSError, ValueError):
    return default


def rows(path: pathlib.Path) -> list[dict]:
  """Returns the rows of a metrics.jsonl up to a last line that is still being written."""
  found = []
  with contextlib.suppress(OSError, ValueError):
    for line in path.read_bytes().splitlines():
      found.append(parse(line))
  return found


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _finite(member) for name, member in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(member) for member in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
