"""Reading JSON that somebody else wrote."""

import json
import pathlib
from typing import Any


def parse(text: str | bytes) -> Any:
  """The value of a JSON text, which bytes hold as UTF-8.

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
  """The values of a file with one JSON text a line. Raises ValueError that names file and line."""
  found = []
  for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), start=1):
    try:
      found.append(parse(line))
    except ValueError as error:
      raise ValueError(f'{path}, line {number}: not JSON ({error}); remove it') from None
  return found
