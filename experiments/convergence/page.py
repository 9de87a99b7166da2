"""The parts of docs/bptt.md on the convergence of the passes."""

import functools
import pathlib

import numpy as np

from experiments import pages

read = functools.partial(pages.read, 'convergence.json')


def texts(record: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the table over checkpoints and the figure."""
  from experiments.convergence import figure

  figure.convergence(record, drawn / 'convergence.png')
  text = pages.paragraphs(
    table(record),
    f'Mean over seeds and, in brackets, lowest and highest, over the {record["trained_length"]} '
    f'trained positions of {record["rows"]} validation windows. {pages.measured_on(record)}',
    '![Convergence of the passes.](figures/convergence.png)',
  )
  return {'docs/bptt.md': text}


def table(record: dict) -> str:
  """Returns the mean and spread over seeds of every checkpoint."""
  from experiments.convergence.figure import by_step, shown_passes

  depth, passes, shown = record['config']['model']['depth'], record['passes'], shown_passes(record)
  head = ['step', 'seeds', 'exact perplexity', *(f'K={k} less exact' for k in shown)]
  head += [f'contraction at K={depth}', 'passes until exact']
  rows = []
  for step, runs in by_step(record).items():
    exact = np.array([run['whole_exact_perplexity'] for run in runs])
    whole = np.array([run['whole_perplexity'] for run in runs])
    until = [run['whole_passes_until_exact'] or passes + 1 for run in runs]
    ratio = [run['ratio'][min(depth, passes) - 2] for run in runs]
    low, high = min(until), max(until)
    cells = [step, len(runs), pages.spread(exact, '.3f')]
    cells += [pages.spread(whole[:, k - 1] - exact, '+.2g') for k in shown]
    cells += [pages.spread(ratio, '.2f')]
    cells += [f'{low} to {high}' if low < high else f'{low}' if low <= passes else f'> {passes}']
    rows.append(cells)
  return pages.table(head, rows)
