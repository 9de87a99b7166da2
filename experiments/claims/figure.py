"""The forest plot of the decisive comparisons, and the figure of the tables in README."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from crt_jax.evaluation.figures import BLUE, GREEN, GREY, ORANGE, page_figure
from experiments.claims.claim import CONFIRMED, NATS, REFUTED
from experiments.claims.verdicts import Judged

COLORS = {CONFIRMED: GREEN, REFUTED: ORANGE}


def forest(judged: list[Judged], path: pathlib.Path) -> bool:
  """Draws the differences in nats with their 95 % intervals; returns whether there were any."""
  rows = [
    (one, estimate)
    for one in judged
    if one.claim.measure == NATS
    for estimate in one.estimates
    if estimate.comparison.decisive and math.isfinite(estimate.low)
  ]
  if not rows:
    path.unlink(missing_ok=True)
    return False
  with page_figure(path, 'Decisive comparisons', {}, height=1.5 + 0.3 * len(rows)) as axes:
    for y, (one, estimate) in enumerate(rows):
      color = COLORS.get(one.verdict, BLUE)
      axes.plot([estimate.low, estimate.high], [y, y], color=color)
      axes.plot([estimate.seeds.mean], [y], 'o', color=color)
    for color, verdict in {COLORS.get(one.verdict, BLUE): one.verdict for one, _ in rows}.items():
      axes.plot([], [], 'o-', color=color, label='not decided' if color == BLUE else verdict)
    axes.legend(frameon=False, fontsize=7)
    axes.axvline(0, color=GREY, linewidth=1)
    names = [f'{one.claim.name}, {one.size}: {estimate.comparison.name}' for one, estimate in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.locator_params(axis='x', nbins=6)  # labels of two decimals beside long names
    axes.set_xlabel('difference in nats per token, 95 % interval;\nleft of 0 the first is better')
  return True


def perplexities(tables: Mapping[str, Mapping[str, Sequence[float]]], path: pathlib.Path) -> None:
  """Draws for each title its models, with a point for every seed."""
  panels = page_figure(path, '', {}, panels=len(tables), height=2.4)
  with panels as axes:
    for one, (title, models) in zip(np.ravel(axes), tables.items(), strict=True):
      for y, values in enumerate(models.values()):
        one.plot(values, [y] * len(values), 'o', color=ORANGE if y == 0 else BLUE, alpha=0.6)
      one.set_yticks(range(len(models)), list(models), fontsize=8)
      one.set_ylim(len(models) - 0.5, -0.5)
      one.set_title(title, fontsize=10)
      one.set_xlabel('perplexity, lower is better')
