"""Figures and tables of the study of gradients and fine-tuning (docs/bptt.md), from their JSON."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter

from crt_jax.evaluation.figures import BLUE, GREEN, GREY, ORANGE, STYLE, figure_of


def fine_tuning_line(name: str, record: dict) -> str:
  """One line of a training: perplexity in every form, mean and range over seeds."""
  parts = []
  for row in record['validation']:
    values = np.array(row['perplexity'], float)
    form = 'sequential' if row['depth'] is None else f'K={row["depth"]}'
    parts.append(f'{form} {values.mean():.3f} ({values.min():.3f} to {values.max():.3f})')
  return f'{name.replace("_", " ")}: ' + '; '.join(parts)


def sequential_of(piece: dict) -> np.ndarray:
  """The perplexity of the exact recurrence, one value a seed."""
  return np.array(
    next(row['perplexity'] for row in piece['validation'] if row['form'] == 'sequential')
  )


def fine_tuning_table(record: dict) -> str:
  """Perplexities of every way of fine-tuning, and the gain over more of the same, seed by seed."""
  pieces = record['pieces']
  forms = [(row['form'], row['depth']) for row in pieces['base']['validation']]
  heads = ['sequential' if depth is None else f'K={depth}' for _, depth in forms]
  head = ['trained', 'steps', *heads, 'sequential, less more of the same']
  lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
  same = sequential_of(pieces['more_of_the_same']) if 'more_of_the_same' in pieces else None
  for name, piece in pieces.items():
    found = {(row['form'], row['depth']): row['perplexity'] for row in piece['validation']}
    cells = ['by K passes' if name == 'base' else f'then {name.replace("_", " ")}']
    cells += [piece['config']['train']['steps']]
    cells += [f'{np.mean(found[form]):.3f}' if form in found else '' for form in forms]
    gain = sequential_of(piece) - same if same is not None and name != 'base' else None
    cells += ['' if gain is None else spread(gain)]
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
  return '\n'.join(lines)


def spread(values: np.ndarray) -> str:
  """'-0.12 (-0.15 to -0.09)'."""
  return f'{values.mean():+.3f} ({values.min():+.3f} to {values.max():+.3f})'


def fine_tuning(record: dict, path: str | pathlib.Path) -> None:
  """Draws the sequential perplexity after every way of fine-tuning, one dot a seed."""
  pieces = {name: piece for name, piece in record['pieces'].items() if name != 'base'}
  base = record['pieces']['base']
  config = base['config']
  made_from = (
    f'{described(config)}; {config["train"]["steps"]} steps by K passes, then '
    f'{next(iter(pieces.values()))["config"]["train"]["steps"]} steps of '
    f'{config["data"]["batch_size"]} rows each'
  )
  with matplotlib.rc_context(STYLE):
    figure, (left, right) = figure_of(
      'Fine-tuned by parallel passes or by exact backpropagation',
      record['origin'],
      11,
      2,
      made_from,
    )
    values_S = np.array([sequential_of(piece) for piece in pieces.values()])
    rows = np.arange(len(pieces))
    same_S = sequential_of(pieces.get('more_of_the_same', base))
    for seed, values, same in zip(base['seeds'], values_S.T, same_S, strict=True):
      left.plot(values, rows, 'o', markersize=5, label=f'seed {seed}')
      right.plot(values - same, rows, 'o', markersize=5)
    for axes, means in ((left, values_S.mean(axis=1)), (right, (values_S - same_S).mean(axis=1))):
      axes.plot(means, rows, '|', color='black', markersize=16)
      axes.set_yticks(rows, [name.replace('_', ' ') for name in pieces])
      axes.set_ylim(len(pieces) - 0.5, -0.5)
    before = f'(before: {sequential_of(base).mean():.2f})'
    left.set_xlabel(f'validation perplexity, exact recurrence {before}')
    left.legend(frameon=False, fontsize=8)
    right.axvline(0, color=GREY, linewidth=1, linestyle=':')
    right.set_yticklabels([])
    right.set_xlabel('less that of more of the same, same seed (bar: mean)')
    figure.savefig(path, dpi=150)


def described(config: dict) -> str:
  model, data = config['model'], config['data']
  text = f'{data["corpus"]}, T={data["sequence_length"]}'
  return f'CRT, D={model["layers"]}, C={model["width"]}, {text}'


def _of_state(row: dict, state: str, name: str) -> list[float]:
  """A measure on all fresh or all trained parameters, over seeds and batches."""
  return [x for of, m in row['measured'].items() if of.startswith(state) for x in m[name]]


def gradients_table(record: dict) -> str:
  """Every estimator: cosine and ratio of norms with the exact gradient, memory and time."""
  head = ['estimator', 'cosine, fresh', 'trained', 'of the correction, trained']
  head += ['norm ratio, fresh', 'trained', 'temporaries, MiB', 'seconds']
  lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
  for name, row in record['estimators'].items():
    wanted = [('fresh', 'cosine_all'), ('trained', 'cosine_all'), ('trained', 'cosine_correction')]
    wanted += [('fresh', 'norm_ratio_all'), ('trained', 'norm_ratio_all')]
    cells = [name, *(f'{np.mean(_of_state(row, *of)):.3f}' for of in wanted)]
    cells += [f'{row["temporary_bytes"] / 2**20:.1f}', f'{row["seconds"]:.3f}']
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def gradients(record: dict, path: str | pathlib.Path) -> None:
  """Draws every estimator's cosine and norm ratio with the exact gradient, memory and time."""
  rows = record['estimators']
  config = record['study_config']
  made_from = (
    f'{described(config)}, {config["data"]["batch_size"]} rows; '
    f'{len(config["study"]["seeds"])} seeds x {config["study"]["batches"]} batches; memory: '
    'temporaries of the compiled gradient'
  )
  names = list(rows)
  with matplotlib.rc_context(STYLE):
    figure, axes = figure_of(
      'Gradient estimators against exact backpropagation', record['origin'], 14, 4, made_from
    )
    figure.set_size_inches(14, 1.5 + 0.28 * len(names))
    measures = ('cosine_all', 'cosine_correction', 'norm_ratio_all')
    words = ('cosine, all parameters', 'cosine, correction', '|g| / |exact g|, all parameters')
    for panel, measure, label in zip(axes, measures, words, strict=False):
      for state, colour, shift in (('fresh', GREY, -0.15), ('trained', BLUE, 0.15)):
        for y, name in enumerate(names):
          values = _of_state(rows[name], state, measure)
          panel.plot([min(values), max(values)], [y + shift] * 2, color=colour, linewidth=1)
          panel.plot(np.mean(values), y + shift, 'o', color=colour, markersize=4,
                     label=state if y == 0 else None)  # fmt: skip
      panel.axvline(1, color=GREY, linewidth=0.8, linestyle=':')
      panel.set_xlabel(label)
    axes[0].legend(frameon=False, fontsize=8, loc='lower left')
    cost = axes[3]
    exact = rows['exact']
    for key, colour, label in (
      ('temporary_bytes', ORANGE, 'memory'),
      ('seconds', GREEN, 'time'),
    ):
      values = [row[key] / exact[key] for row in rows.values()]
      cost.plot(values, range(len(names)), 'o', color=colour, markersize=4, label=label)
    cost.set_xscale('log', base=2)
    cost.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    cost.set_xlabel('cost, exact = 1')
    cost.legend(frameon=False, fontsize=8)
    for panel in axes:
      panel.set_yticks(range(len(names)), names if panel is axes[0] else [])
      panel.set_ylim(len(names) - 0.4, -0.6)
    figure.savefig(path, dpi=150)


FIGURES = {
  'gradients': gradients,
  'fine_tuning': fine_tuning,
}
TABLES = {
  'gradients': gradients_table,
  'fine_tuning': fine_tuning_table,
}
