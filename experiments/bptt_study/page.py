"""The parts of docs/bptt.md on gradient estimators and fine-tuning."""

import functools
import pathlib

import numpy as np

from experiments import pages

read = functools.partial(pages.read, 'results.json')


def texts(record: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns both tables and figures."""
  from experiments.bptt_study import figures

  figures.gradients(record['gradients'], drawn / 'bptt_gradients.png')
  figures.fine_tuning(record, drawn / 'bptt_fine_tuning.png')
  text = pages.paragraphs(
    gradients_table(record['gradients']),
    'Mean over seeds and batches. Memory is that of the temporaries of the compiled gradient.',
    '![Gradients against the exact one.](figures/bptt_gradients.png)',
    fine_tuning_table(record),
    f'Validation perplexity per token, mean over seeds. {pages.measured_on(record)}',
    '![After fine-tuning.](figures/bptt_fine_tuning.png)',
  )
  return {'docs/bptt.md': text}


def gradients_table(record: dict) -> str:
  """Returns the table of estimators: cosine and norm ratio, memory and time."""
  head = ['estimator', 'cosine, fresh', 'trained', 'of the correction, trained']
  head += ['norm ratio, fresh', 'trained', 'temporaries, MiB', 'seconds']
  wanted = [('fresh', 'cosine_all'), ('trained', 'cosine_all'), ('trained', 'cosine_correction')]
  wanted += [('fresh', 'norm_ratio_all'), ('trained', 'norm_ratio_all')]
  rows = []
  for name, row in record['estimators'].items():
    cells = [name, *(f'{np.mean(of_state(row, *of)):.3f}' for of in wanted)]
    rows.append([*cells, f'{row["temporary_bytes"] / 2**20:.1f}', f'{row["seconds"]:.3f}'])
  return pages.table(head, rows)


def of_state(row: dict, state: str, name: str) -> list[float]:
  """Returns a measure on all fresh or all trained parameters, over seeds and batches."""
  return [x for of, m in row['measured'].items() if of.startswith(state) for x in m[name]]


def fine_tuning_table(record: dict) -> str:
  """Returns the table of fine-tuning: perplexity, and the gain over more of the same, by seed."""
  pieces = record['pieces']
  forms = [(row['form'], row['depth']) for row in pieces['base']['validation']]
  heads = ['sequential' if depth is None else f'K={depth}' for _, depth in forms]
  head = ['trained', 'steps', *heads, 'sequential, less more of the same']
  same = sequential_of(pieces['more_of_the_same']) if 'more_of_the_same' in pieces else None
  rows = []
  for name, piece in pieces.items():
    found = {(row['form'], row['depth']): row['perplexity'] for row in piece['validation']}
    cells = ['by K passes' if name == 'base' else f'then {name.replace("_", " ")}']
    cells += [piece['config']['train']['steps']]
    cells += [f'{np.mean(found[form]):.3f}' if form in found else '' for form in forms]
    has_gain = same is not None and name != 'base'
    rows.append([*cells, pages.spread(sequential_of(piece) - same, '+.3f') if has_gain else ''])
  return pages.table(head, rows)


def sequential_of(piece: dict) -> np.ndarray:
  """Returns the perplexity of the exact recurrence, one value a seed."""
  return np.array(
    next(row['perplexity'] for row in piece['validation'] if row['form'] == 'sequential')
  )
