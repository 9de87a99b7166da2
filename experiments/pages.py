"""Building blocks of study pages: finished records, tables, and the origin of numbers."""

import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from crt_jax.cli.user_errors import Mistake

DIGITS = 9  # significant; differences of perplexities are taken of what is left
# Private paths, which mean nothing to other readers.
PRIVATE = ('command', 'cache_dir', 'tfds_dir', 'files')


def read(file: str, folder: pathlib.Path, name: str) -> dict:
  """Returns the record of the finished study of that name, ready to be committed.

  Raises:
    Mistake: the directory has no such file.
  """
  if not (folder / file).exists():
    raise Mistake(f'--{name}={folder}: no {file} here; give the directory of a finished study')
  return rounded(json.loads((folder / file).read_text('utf-8')))


def rounded(value: Any, digits: int = DIGITS) -> Any:
  """Returns the record with fewer digits and without private paths."""
  if isinstance(value, dict):
    return {k: rounded(v, digits) for k, v in value.items() if k not in PRIVATE}
  if isinstance(value, list):
    return [rounded(v, digits) for v in value]
  return float(f'{value:.{digits}g}') if isinstance(value, float) else value


def table(head: Sequence, rows: Iterable[Sequence]) -> str:
  """Returns a table in Markdown."""
  lines = ['| ' + ' | '.join(map(str, cells)) + ' |' for cells in (head, *rows)]
  return '\n'.join([lines[0], '|---' * len(head) + '|', *lines[1:]])


def paragraphs(*parts: str) -> str:
  """Returns the parts joined by empty lines."""
  return '\n\n'.join(parts)


def measured_on(record: dict) -> str:
  """Returns the device, the versions and the date of a measurement."""
  from crt_jax.evaluation.figures import caption

  return f'Measured on {caption(record["origin"])}; other work shared the machine.'


def numbers_from(record: dict, name: str) -> str:
  """Returns the device and versions of a measurement, and a link to its numbers."""
  from crt_jax.evaluation.figures import caption

  origin = record['origin']
  numbers = f'[{name}.json](results/{name}.json)'
  return f'{caption(origin)}, commit {origin["commit"][:7]}; numbers: {numbers}.'


def spread(values: Sequence[float] | np.ndarray, form: str) -> str:
  """Formats values as '0.12 (0.1 to 0.15)': mean, lowest and highest; one number if equal."""
  low, mean, high = (f'{x:{form}}' for x in (min(values), sum(values) / len(values), max(values)))
  return mean if low == high else f'{mean} ({low} to {high})'


def filled(page: pathlib.Path, text: str, mark: str) -> str:
  """Returns the page with `text` between its two marks, <!-- mark --> and <!-- /mark -->.

  Raises:
    Mistake: the marks are not there exactly once.
  """
  marked = re.compile(rf'(<!-- {mark} -->\n).*?(<!-- /{mark} -->)', re.DOTALL)
  whole, count = marked.subn(lambda match: f'{match[1]}{text}\n{match[2]}', page.read_text('utf-8'))
  if count != 1:
    raise Mistake(f'{page}: found {count} pairs of <!-- {mark} --> marks, wanted one')
  return whole
