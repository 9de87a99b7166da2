"""The forest plot: every decisive comparison that has runs, with its interval."""

import math
import pathlib

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
    axes.axvline(0, color=GREY, linewidth=1)
    names = [f'{one.claim.name}, {one.size}: {estimate.comparison.name}' for one, estimate in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel('difference in nats per token, 95 % interval;\nleft of 0 the first is better')
  return True
