"""The part of docs/bptt.md on pointer chasing."""

import functools
import pathlib

from experiments import pages

read = functools.partial(pages.read, 'results.json')
HEAD = ('model', 'parameters', 'steps', 'levels solved (of 10)', 'final query')


def texts(record: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the table of levels solved by each model, and the figure."""
  from experiments.pointer_chasing import figure

  figure.levels(record, drawn / 'pointer_chasing.png')
  rows = []
  for model, result in record['models'].items():
    solved, final = figure.solved_levels(figure.trained_record(result)['accuracy'])
    cells = (model.replace('/', ', '), f'{result["parameters"]:,}')
    rows.append((*cells, result['config']['train']['steps'], solved, f'{final:.2f}'))
  text = pages.paragraphs(
    pages.table(HEAD, rows),
    pages.measured_on(record),
    '![Levels solved.](figures/pointer_chasing.png)',
  )
  return {'docs/bptt.md': text}
