"""The part of docs/cart.md on the growth of the state."""

import functools
import pathlib

import numpy as np

from experiments import pages

read = functools.partial(pages.read, 'state_growth.json')


def texts(record: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the table of the state's RMS after some of the loops, and the figure."""
  from experiments.state_growth import figure

  figure.state_growth(record, drawn / f'{name}.png')
  loops = [r for r in (0, 1, 2, 3, 4, 5, 6, 10, 16) if r <= record['loops']]
  rows = []
  for variant, seeds in record['variants'].items():
    mean = np.mean(seeds, axis=0)
    rows.append([variant, *(short(mean[r]) for r in loops)])
  text = pages.paragraphs(
    pages.table(['RMS of the state after R loops', *loops], rows),
    f'![Root mean square of the state after each loop.](figures/{name}.png)',
    pages.numbers_from(record, name),
  )
  return {'docs/cart.md': text}


def short(value: float) -> str:
  """Formats a number with three digits, or with all digits before the point."""
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
