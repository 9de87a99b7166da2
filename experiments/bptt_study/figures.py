"""The figures: gradients against the exact one, and perplexity after fine-tuning."""

import pathlib

import numpy as np
from matplotlib.ticker import FuncFormatter

from crt_jax.evaluation.figures import BLUE, GREEN, GREY, ORANGE, page_figure
from experiments.bptt_study.page import of_state, sequential_of


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
  title = 'Fine-tuned by parallel passes or by exact backpropagation'
  with page_figure(path, title, record['origin'], 2, made_from) as (left, right):
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
    left.set_xlabel(f'validation perplexity,\nexact recurrence {before}')
    left.legend(frameon=False, fontsize=8)
    right.axvline(0, color=GREY, linewidth=1, linestyle=':')
    right.set_yticklabels([])
    right.set_xlabel('less that of more of the same,\nsame seed (bar: mean)')


def described(config: dict) -> str:
  model, data = config['model'], config['data']
  text = f'{data["corpus"]}, T={data["sequence_length"]}'
  return f'CRT, D={model["layers"]}, C={model["width"]}, {text}'


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
  title, height = 'Gradient estimators against exact backpropagation', 1 + 0.25 * len(names)
  with page_figure(path, title, record['origin'], 4, made_from, height) as axes:
    measures = ('cosine_all', 'cosine_correction', 'norm_ratio_all')
    words = ('cosine, all parameters', 'cosine, correction', '|g| / |exact g|, all parameters')
    for panel, measure, label in zip(axes, measures, words, strict=False):
      for state, colour, shift in (('fresh', GREY, -0.15), ('trained', BLUE, 0.15)):
        for y, name in enumerate(names):
          values = of_state(rows[name], state, measure)
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
      panel.set_yticks(range(len(names)), names if panel in axes[::2] else [])
      panel.set_ylim(len(names) - 0.4, -0.6)
