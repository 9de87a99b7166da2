"""The figure: levels solved against depth, accuracy by level, and levels over training."""

import pathlib

from matplotlib.axes import Axes

from crt_jax.evaluation.accuracy import SOLVED
from crt_jax.evaluation.figures import BLUE, GREEN, GREY, ORANGE, page_figure

KINDS = {  # by what the name of a model starts with
  'transformer': (GREY, 'transformer, N layers'),
  'unroll': (ORANGE, 'CRT, one layer, K parallel passes'),
  'chunked': (GREEN, 'CRT, one layer, chunks'),
  'bptt': (BLUE, 'CRT, one layer, exact BPTT'),
}


def solved_levels(accuracy: dict[str, float]) -> tuple[int, float]:
  """Returns the number of solved levels, without the final query, and that query's share.

  A level is solved above 90 % of correct answers (crt.md 11.3).
  """
  shares = [share for name, share in accuracy.items() if name != 'final']
  return sum(share > SOLVED for share in shares), accuracy['final']


def trained_record(result: dict) -> dict:
  """Returns the record of the trained form: passes for 'unroll', else the recurrence."""
  driver = result['config']['model'].get('driver', 'unroll')
  form = 'parallel' if driver == 'unroll' else 'sequential'
  return next(record for record in result['final'] if record['form'] == form)


def levels(record: dict, path: str | pathlib.Path) -> None:
  """Draws levels solved against depth, accuracy by level at the end, and levels over training.

  Args:
    record: results.json of experiments.pointer_chasing.
  """
  models = record['models']
  first = next(iter(models.values()))['config']
  task = f'{first["data"]["corpus"]}, C={first["model"]["width"]}, '
  task += f'window {first["model"]["window"]}, {first["data"]["batch_size"]} examples a step, '
  steps = sorted({result['config']['train']['steps'] for result in models.values()})
  task += f'{" or ".join(map(str, steps))} steps, seed {first["seed"]}'
  title = 'Pointer chasing: how deep can a model look things up?'
  with page_figure(path, title, record['origin'], 3, task) as (left, middle, right):
    _levels_against_depth(left, models)
    for name, result in models.items():
      colour, dash = _line(name, models)
      shares = list(trained_record(result)['accuracy'].values())
      middle.plot(range(len(shares)), shares, dash, color=colour, marker='o', markersize=3)
      steps = [row['step'] for row in result['curve']]
      counts = [solved_levels(row['accuracy'])[0] for row in result['curve']]
      right.plot(steps, counts, dash, color=colour, marker='o', markersize=3, label=name)
    names = list(trained_record(first_of(models))['accuracy'])
    ticks = [name.removeprefix('level_') for name in names]
    middle.set_xticks(range(len(ticks)), ticks)
    middle.axhline(SOLVED, color=GREY, linewidth=1, linestyle=':')
    middle.set_ylim(0, 1.04)
    middle.set_xlabel('level of the query')
    middle.set_ylabel('share of right answers at the end')
    right.set_xlabel('optimiser step')
    right.set_ylabel('levels solved (of 10)')
    right.legend(frameon=False, fontsize=8)


def first_of(models: dict) -> dict:
  return next(iter(models.values()))


def _levels_against_depth(axes: Axes, models: dict) -> None:
  """Draws points over N or K; models as deep as the sequence are horizontal lines."""
  deepest = 1
  for kind, (colour, words) in KINDS.items():
    points = []
    for name, result in models.items():
      if not name.startswith(kind):
        continue
      solved, _ = solved_levels(trained_record(result)['accuracy'])
      if kind in ('bptt', 'chunked'):
        extra = name.removeprefix(kind).replace('/', ' ')
        style = '--' if kind == 'bptt' else ':'
        axes.axhline(solved, color=colour, linestyle=style, label=f'{words}{extra}')
      else:
        depth = result['config']['model']['layers' if kind == 'transformer' else 'depth']
        points.append((depth, solved))
    if points:
      points.sort()
      axes.plot(*zip(*points, strict=True), 'o-', color=colour, label=words)
      deepest = max(deepest, points[-1][0])
  axes.plot([0, deepest], [0, deepest], color=GREY, linewidth=0.8, linestyle=':')
  axes.annotate('dotted: one level a layer', (deepest, 0), (-4, 10), textcoords='offset points',
                ha='right', fontsize=8, color=GREY)  # fmt: skip
  axes.set_ylim(-0.3, 11)
  axes.set_xlabel('layers N, or passes K')
  axes.set_ylabel('levels solved (of 10)')
  axes.legend(frameon=False, fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0)


def _line(name: str, models: dict) -> tuple[str, str]:
  """Returns colour and dashes of a model: colour by kind, dashes by model within a kind."""
  kind = name.partition('/')[0]
  alike = [other for other in models if other.startswith(kind)]
  return KINDS[kind][0], ('-', '--', ':', '-.')[alike.index(name) % 4]
