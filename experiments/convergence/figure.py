"""The figure: gaps by position and prefix, how passes shrink them, and when nothing is left."""

import pathlib
from typing import Any

import matplotlib
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from crt_jax.evaluation.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, page_figure


def by_step(record: dict) -> dict[int, list[dict]]:
  """Returns the runs of a convergence study by the step of their checkpoint, ascending."""
  steps = sorted({run['step'] for run in record['runs']})
  return {step: [run for run in record['runs'] if run['step'] == step] for step in steps}


def convergence(record: dict, path: str | pathlib.Path) -> None:
  """Draws a convergence study of the last checkpoint.

  The panels show the gap by position, the perplexity gap by prefix length, how the change shrinks,
  and (dashed, by checkpoint) the passes until exact.
  """
  model, data = record['config']['model'], record['config']['data']
  steps = by_step(record)
  last = steps[max(steps)]
  made_from = (
    f'CRT, D={model["layers"]}, C={model["width"]}, K={model["depth_min"] or model["depth"]} to '
    f'{model["depth"]}, {data["corpus"]}, T={record["trained_length"]}; '
    + (f'{len(last)} seeds (band: lowest to highest), ' if len(last) > 1 else '1 seed, ')
    + f'{record["rows"]} validation windows; step {max(steps)} where none is named'
  )
  longer = record['length'] > record['trained_length']
  title, panels = 'Parallel passes against the exact recurrence', 5 if longer else 4
  with page_figure(path, title, record['origin'], panels, made_from) as axes:
    _gap_by_position(axes[0], record, last)
    _perplexity_gap(axes[1], record, last)
    _shrinking(axes[2], record, steps)
    _passes_until_exact(axes[3], record, steps)
    if longer:
      _beyond(axes[4], record, last)


def _centres(record: dict) -> np.ndarray:
  edges = np.array(record['edges'], float)
  return (edges[:-1] + edges[1:] - 1) / 2


def shown_passes(record: dict) -> list[int]:
  """Returns which of the compared K the figure shows."""
  depth, passes = record['config']['model']['depth'], record['passes']
  return sorted({k for k in (1, 2, 3, depth, 2 * depth, passes) if k <= passes})


def _band(axes: Axes, x: ArrayLike, values_SxP: np.ndarray, **style: Any) -> None:
  """Draws the mean over seeds, and the range between the lowest and the highest."""
  [line] = axes.plot(x, values_SxP.mean(axis=0), **style)
  low, high = values_SxP.min(axis=0), values_SxP.max(axis=0)
  axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _mark_trained(axes: Axes, record: dict) -> None:
  if record['length'] > record['trained_length']:
    axes.axvline(record['trained_length'], color=GREY, linewidth=1, linestyle=':')
  axes.set_xlabel('position' + (' (dotted: trained)' if record['length'] > record['trained_length']
                                else ''))  # fmt: skip


def _gap_by_position(axes: Axes, record: dict, runs: list[dict]) -> None:
  colours = matplotlib.colormaps['viridis']
  shown = shown_passes(record)
  for index, k in enumerate(shown):
    values = np.array([[stretch[k - 1] for stretch in run['gap']] for run in runs])
    colour = colours(index / len(shown))
    _band(axes, _centres(record), values, color=colour, label=f'K={k}')
  axes.axhline(record['floor'], color=GREY, linewidth=1, linestyle='--')
  axes.set_yscale('log')
  axes.set_ylabel('|h(K) - h| / |h| of the hidden state')
  axes.legend(
    frameon=False,
    fontsize=8,
    ncols=3,
    handlelength=1,
    columnspacing=0.8,
    loc='lower left',
    bbox_to_anchor=(0, 1),
    borderaxespad=0.2,
  )
  _mark_trained(axes, record)


def _perplexity_gap(axes: Axes, record: dict, runs: list[dict]) -> None:
  colours = matplotlib.colormaps['viridis']
  shown = shown_passes(record)
  exact = np.array([run['exact_perplexity'] for run in runs], float)
  for index, k in enumerate(shown):
    values = np.array([[stretch[k - 1] for stretch in run['perplexity']] for run in runs], float)
    colour = colours(index / len(shown))
    _band(axes, _centres(record), np.abs(values - exact), color=colour, label=f'K={k}')
  axes.set_yscale('log')
  axes.set_ylabel('|perplexity at K - exact|')
  _mark_trained(axes, record)


def _beyond(axes: Axes, record: dict, runs: list[dict]) -> None:
  """Draws the perplexity of both forms by position, for texts longer than in training."""
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


def _shrinking(axes: Axes, record: dict, steps: dict) -> None:
  for colour, (step, runs) in zip((PURPLE, GREEN, BLUE), list(steps.items())[-3:], strict=False):
    ratio = np.array([run['ratio'] for run in runs])
    x = np.arange(2, ratio.shape[1] + 2)
    _band(axes, x, ratio, color=colour, marker='o', markersize=3, label=f'step {step}')
  axes.axhline(1, color=GREY, linewidth=1, linestyle=':')
  axes.set_ylim(0, 1.3)
  axes.set_xlabel('pass k')
  axes.set_ylabel('largest change of pass k over that of k - 1')
  axes.legend(frameon=False, fontsize=8)


def _passes_until_exact(axes: Axes, record: dict, steps: dict) -> None:
  for colour, (step, runs) in zip((PURPLE, GREEN, BLUE), list(steps.items())[-3:], strict=False):
    values = np.array([run['passes_until_exact'] for run in runs])
    _band(axes, _centres(record), values, color=colour, label=f'step {step}')
  axes.set_ylabel(f'mean passes until the gap stays below {record["floor"]:g}')
  axes.legend(frameon=False, fontsize=8)
  _mark_trained(axes, record)
