"""The small JSON files of a sweep. Nothing here imports JAX, so looking at a sweep is quick."""

import datetime
import json
import os
import pathlib
from typing import Any


def read_json(path: pathlib.Path, default: Any = None) -> Any:
  """Returns the content of a JSON file; the default if it is missing or cannot be read."""
  try:
    return json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return default


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file atomically, so a reader finds the old one or the new one."""
  scratch = path.with_name(f'{path.name}.{os.getpid()}.partial')
  scratch.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n', 'utf-8')
  os.replace(scratch, path)


def rows(path: pathlib.Path) -> list[dict]:
  """Returns the rows of a metrics.jsonl without an unfinished last line."""
  try:
    lines = path.read_bytes().splitlines()
  except OSError:
    return []
  found = []
  for line in lines:
    try:
      found.append(json.loads(line))
    except (ValueError, RecursionError):
      break
  return found


def now() -> str:
  """Returns the time in UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
