"""Figures of the studies of the recurrence along the sequence (docs/bptt.md), from their JSON."""

import pathlib

import matplotlib
import numpy as np

from crt_jax.evaluation.accuracy import SOLVED
from crt_jax.evaluation.figures import BLUE, GREEN, GREY, ORANGE, STYLE, figure_of

PURPLE, BROWN = '#8a4a9a', '#8a6a2a'
KINDS = {  # of pointer chasing, by what the name of a model starts with
  'transformer': (GREY, 'transformer, N layers'),
  'unroll': (ORANGE, 'CRT, one layer, K parallel passes'),
  'chunked': (GREEN, 'CRT, one layer, chunks'),
  'bptt': (BLUE, 'CRT, one layer, exact BPTT'),
}


def solved_levels(accuracy: dict[str, float]) -> tuple[int, float]:
  """How many levels are solved (above 90 % of right answers, crt.md 11.3), without the final query,
  and the share of the final query."""
  shares = [share for name, share in accuracy.items() if name != 'final']
  return sum(share > SOLVED for share in shares), accuracy['final']


def trained_record(result: dict) -> dict:
  """The record of the form that was trained: passes for 'unroll', else the exact recurrence."""
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
  with matplotlib.rc_context(STYLE):
    figure, (left, middle, right) = figure_of(
      'Pointer chasing: how deep can a model look things up?', record['origin'], 13, 3, task
    )
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
    figure.savefig(path, dpi=150)


def first_of(models: dict) -> dict:
  return next(iter(models.values()))


def _levels_against_depth(axes, models: dict) -> None:
  """Points over N or K; what has the depth of the sequence is a line across."""
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
  above = dict(loc='lower left', bbox_to_anchor=(0, 1), ncols=1, borderaxespad=0)
  axes.legend(frameon=False, fontsize=8, **above)


def _line(name: str, models: dict) -> tuple[str, str]:
  """Colour and dashes of a model: the colour is of its kind, dashes tell its kind apart."""
  kind = name.partition('/')[0]
  alike = [other for other in models if other.startswith(kind)]
  return KINDS[kind][0], ('-', '--', ':', '-.')[alike.index(name) % 4]


def by_step(record: dict) -> dict[int, list[dict]]:
  """The runs of a convergence study by the step of their checkpoint, ascending."""
  steps = sorted({run['step'] for run in record['runs']})
  return {step: [run for run in record['runs'] if run['step'] == step] for step in steps}


def convergence_table(record: dict) -> str:
  """Mean and spread over seeds of what experiments.convergence found, for every checkpoint."""
  depth, passes = record['config']['model']['depth'], record['passes']
  shown = sorted({k for k in (1, 2, 3, depth, 2 * depth, passes) if k <= passes})
  head = ['step', 'seeds', 'exact perplexity', *(f'K={k} less exact' for k in shown)]
  head += [f'contraction at K={depth}', 'passes until exact']
  lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
  for step, runs in by_step(record).items():
    exact = np.array([run['whole_exact_perplexity'] for run in runs])
    whole = np.array([run['whole_perplexity'] for run in runs])
    until = [run['whole_passes_until_exact'] or passes + 1 for run in runs]
    ratio = np.array([run['ratio'][min(depth, passes) - 2] for run in runs])
    low, high = min(until), max(until)
    cells = [step, len(runs), mean_and_spread(exact, '.3f')]
    cells += [mean_and_spread(whole[:, k - 1] - exact) for k in shown]
    cells += [mean_and_spread(ratio, '.2f')]
    cells += [f'{low} to {high}' if low < high else f'{low}' if low <= passes else f'> {passes}']
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
  return '\n'.join(lines)


def mean_and_spread(values: np.ndarray, form: str = '+.2g') -> str:
  """'+0.0012 (+0.001 to +0.0015)'; of a single value itself."""
  spread = f' ({values.min():{form}} to {values.max():{form}})' if len(values) > 1 else ''
  return f'{values.mean():{form}}{spread}'


def convergence(record: dict, path: str | pathlib.Path) -> None:
  """Draws a convergence study, of the last checkpoint: the gap by position, the perplexity gap by
  prefix length, how the change shrinks, and (dashed, by checkpoint) passes until exact."""
  model, data = record['config']['model'], record['config']['data']
  steps = by_step(record)
  last = steps[max(steps)]
  made_from = (
    f'CRT, D={model["layers"]}, C={model["width"]}, K={model["depth_min"] or model["depth"]} to '
    f'{model["depth"]}, {data["corpus"]}, T={record["trained_length"]}; '
    + (f'{len(last)} seeds (band: lowest to highest), ' if len(last) > 1 else '1 seed, ')
    + f'{record["rows"]} validation windows; step {max(steps)} where none is named'
  )
  with matplotlib.rc_context(STYLE):
    longer = record['length'] > record['trained_length']
    figure, axes = figure_of(
      'Parallel passes against the exact recurrence',
      record['origin'],
      17 if longer else 14,
      5 if longer else 4,
      made_from,
    )
    _gap_by_position(axes[0], record, last)
    _perplexity_gap(axes[1], record, last)
    _shrinking(axes[2], record, steps)
    _passes_until_exact(axes[3], record, steps)
    if longer:
      _beyond(axes[4], record, last)
    figure.savefig(path, dpi=150)


def _centres(record: dict) -> np.ndarray:
  edges = np.array(record['edges'], float)
  return (edges[:-1] + edges[1:] - 1) / 2


def _shown_passes(record: dict) -> list[int]:
  depth, passes = record['config']['model']['depth'], record['passes']
  return sorted({k for k in (1, 2, 3, depth, 2 * depth, passes) if k <= passes})


def _band(axes, x, values_SxP: np.ndarray, **style) -> None:
  """The mean over seeds, and the range between the lowest and the highest."""
  [line] = axes.plot(x, values_SxP.mean(axis=0), **style)
  low, high = values_SxP.min(axis=0), values_SxP.max(axis=0)
  axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _mark_trained(axes, record: dict) -> None:
  if record['length'] > record['trained_length']:
    axes.axvline(record['trained_length'], color=GREY, linewidth=1, linestyle=':')
  axes.set_xlabel('position' + (' (dotted: trained)' if record['length'] > record['trained_length']
                                else ''))  # fmt: skip


def _gap_by_position(axes, record: dict, runs: list[dict]) -> None:
  colours = matplotlib.colormaps['viridis']
  shown = _shown_passes(record)
  for index, k in enumerate(shown):
    values = np.array([[stretch[k - 1] for stretch in run['gap']] for run in runs])
    colour = colours(index / len(shown))
    _band(axes, _centres(record), values, color=colour, label=f'K={k}')
  axes.axhline(record['floor'], color=GREY, linewidth=1, linestyle='--')
  axes.set_yscale('log')
  axes.set_ylabel('|h(K) - h| / |h| of the hidden state')
  above = dict(loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0.2)
  axes.legend(frameon=False, fontsize=8, ncols=3, handlelength=1, columnspacing=0.8, **above)
  _mark_trained(axes, record)


def _perplexity_gap(axes, record: dict, runs: list[dict]) -> None:
  colours = matplotlib.colormaps['viridis']
  shown = _shown_passes(record)
  exact = np.array([run['exact_perplexity'] for run in runs], float)
  for index, k in enumerate(shown):
    values = np.array([[stretch[k - 1] for stretch in run['perplexity']] for run in runs], float)
    colour = colours(index / len(shown))
    _band(axes, _centres(record), np.abs(values - exact), color=colour, label=f'K={k}')
  axes.set_yscale('log')
  axes.set_ylabel('|perplexity at K - exact|')
  _mark_trained(axes, record)


def _beyond(axes, record: dict, runs: list[dict]) -> None:
  """Perplexity of both forms by position, where the text is longer than in training."""
  exact = np.array([run['exact_perplexity'] for run in runs], float)
  depth = record['config']['model']['depth']
  passes = np.array([[stretch[depth - 1] for stretch in run['perplexity']] for run in runs], float)
  edges = record['edges']
  least = min(8, edges[-2])  # the first positions have no context yet
  few = [edge >= least for edge in edges[:-1]]
  x = _centres(record)[few]
  _band(axes, x, exact[:, few], color=ORANGE, label='exact recurrence')
  _band(axes, x, passes[:, few], color=BLUE, linestyle='--', label=f'K={depth}')
  axes.set_yscale('log')
  axes.set_ylabel('perplexity per token')
  axes.legend(frameon=False, fontsize=8)
  _mark_trained(axes, record)


def _shrinking(axes, record: dict, steps: dict) -> None:
  for colour, (step, runs) in zip((PURPLE, GREEN, BLUE), list(steps.items())[-3:], strict=False):
    ratio = np.array([run['ratio'] for run in runs])
    x = np.arange(2, ratio.shape[1] + 2)
    _band(axes, x, ratio, color=colour, marker='o', markersize=3, label=f'step {step}')
  axes.axhline(1, color=GREY, linewidth=1, linestyle=':')
  axes.set_ylim(0, 1.3)
  axes.set_xlabel('pass k')
  axes.set_ylabel('largest change of pass k over that of k - 1')
  axes.legend(frameon=False, fontsize=8)


def _passes_until_exact(axes, record: dict, steps: dict) -> None:
  for colour, (step, runs) in zip((PURPLE, GREEN, BLUE), list(steps.items())[-3:], strict=False):
    values = np.array([run['passes_until_exact'] for run in runs])
    _band(axes, _centres(record), values, color=colour, label=f'step {step}')
  axes.set_ylabel(f'mean passes until the gap stays below {record["floor"]:g}')
  axes.legend(frameon=False, fontsize=8)
  _mark_trained(axes, record)
