"""The figures of the studies of CART, selected by config.study.figure."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from crt_jax.evaluation.figures import BLUE, COLORS, GREY, depth_axis, log_axis, page_figure


def draw(record: dict, path: str | pathlib.Path) -> None:
  """Draws the figure that a study asks for, from results.json, into a PNG or SVG."""
  title, panels, draw_into = FIGURES[record['study']]
  variants = record['variants']
  with page_figure(path, title, record['origin'], panels, _made_from(variants)) as axes:
    draw_into(axes, variants)


def gate(axes: Sequence[Axes], variants: dict) -> None:
  """Draws the mean gate over training beside pure weight decay, and its effects.

  The other panels show loss and Jacobian.
  """
  left, middle, right = axes
  starts = sorted({v['config']['model']['gate_init'] for v in variants.values()})
  for name, variant in variants.items():
    rows = [row for row in variant['history'] if 'gate_mean' in row]
    if not rows:
      continue
    start = variant['config']['model']['gate_init']
    decays = variant['config']['optimizer']['decay_mask'] == 'all'
    colour = COLORS[starts.index(start)]
    frozen = bool(variant['config']['optimizer']['frozen'])
    steps = [row['step'] for row in rows]
    means = np.array([row['gate_mean'] for row in rows])
    style = ':' if frozen else '-' if decays else '--'
    moved = means - start
    left.plot(steps, moved.mean(axis=1), style, color=colour, label=words(name))
    left.fill_between(steps, moved.min(axis=1), moved.max(axis=1), color=colour, alpha=0.2)
    if decays and not frozen:
      left.plot(steps, decayed(start, rows) - start, 'x', color=GREY, markersize=4)
  left.plot([], [], 'x', color=GREY, label='weight decay alone (formula)')
  left.set_xlabel('optimiser step')
  left.set_ylabel('change of the mean gate sigmoid(a)')
  left.legend(frameon=False, fontsize=7, loc='lower left')
  _dots(middle, variants, [v['validation'][0]['perplexity'] for v in variants.values()])
  middle.set_xlabel('validation perplexity, one dot a seed')
  _dots(right, variants, [v['jacobian']['jacobian_radius'] for v in variants.values()])
  right.set_xlabel('spectral radius of the last loop')
  right.axvline(1, color=GREY, linewidth=1)


def depths(axes: Axes, variants: dict) -> None:
  """Draws perplexity against the number of loops at evaluation, one line a variant."""
  for colour, variant in zip(COLORS, variants.values(), strict=False):
    records = [r for r in variant['validation'] if r['form'] == 'parallel']
    depth = [r['depth'] for r in records]
    values = np.array([r['perplexity'] for r in records], float)
    label = trained_with(variant['config']['model'])
    axes.plot(depth, values.mean(axis=1), 'o-', color=colour, label=label, markersize=4)
    axes.fill_between(depth, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2)
  depth_axis(axes, depth, 'loops R at evaluation')
  axes.set_ylabel('validation perplexity per token (log scale)')
  log_axis(axes)
  axes.legend(frameon=False)


def grid(axes: Axes, variants: dict) -> None:
  """Draws perplexity against FLOPs: prelude layers by colour, loops by number."""
  preludes = sorted({v['config']['model']['prelude_layers'] for v in variants.values()})
  for colour, prelude in zip(COLORS, preludes, strict=False):
    chosen = [v for v in variants.values() if v['config']['model']['prelude_layers'] == prelude]
    chosen.sort(key=lambda v: v['config']['model']['loops'])
    flops = [v['cost']['forward_backward_flops_per_token'] / 1e6 for v in chosen]
    values = np.array([v['validation'][0]['perplexity'] for v in chosen], float)
    label = f'P={prelude}' + (' (published with P >= 2)' if prelude < 2 else '')
    axes.plot(flops, values.mean(axis=1), 'o-', color=colour, label=label, markersize=4)
    axes.fill_between(flops, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2)
    for v, x, y in zip(chosen, flops, values.mean(axis=1), strict=True):
      axes.annotate(f'R={v["config"]["model"]["loops"]}', (x, y), (3, 4), fontsize=8, color=colour,
                    textcoords='offset points')  # fmt: skip
  axes.set_xlabel('training MFLOPs per token')
  axes.set_ylabel('validation perplexity per token')
  axes.margins(x=0.08)
  axes.legend(frameon=False)


FIGURES = {  # title, panels, how they are drawn
  'gate': ('Is it the gate, or its weight decay?', 3, gate),
  'depths': ('Evaluated with another number of loops than trained', 1, depths),
  'grid': ('Prelude depth against loops', 1, grid),
}


def decayed(start: float, rows: list[dict]) -> np.ndarray:
  """Returns the gate at the steps of a history if only weight decay moved it (cart.md 9.3)."""
  logit = np.log(start / (1 - start)) * np.array([row['decay_factor'] for row in rows])
  return 1 / (1 + np.exp(-logit))


def trained_with(model: dict) -> str:
  """Returns in words which loops a CART was trained with."""
  low, high = model['loops_min'], model['loops']
  return f'trained with R drawn from {low} to {high}' if low else f'trained with R = {high}'


def _dots(axes: Axes, variants: dict, values_S: list[list[float]]) -> None:
  """Draws one row a variant, one dot a seed."""
  for y, values in enumerate(values_S):
    axes.plot(values, [y] * len(values), 'o', color=BLUE, alpha=0.7, markersize=5)
  axes.set_yticks(range(len(variants)), [words(name) for name in variants])
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.invert_yaxis()


def words(name: str) -> str:
  """Formats a variant's name: decay_0_9 -> 'decay 0.9'."""
  return name.replace('0_', '0.').replace('_', ' ')


def _made_from(variants: dict) -> str:
  first = next(iter(variants.values()))
  model, data = first['config']['model'], first['config']['data']
  steps, seeds = first['config']['train']['steps'], len(first['seeds'])
  return (
    f'{model["name"]}, C={model["width"]}, {data["corpus"]}, {steps} steps of '
    f'{data["batch_size"]} x {data["sequence_length"]} tokens, {seeds} seeds, band = their range'
  )
