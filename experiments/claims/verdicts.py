"""Verdicts from committed records: differences by seed, their intervals, the rule of each claim."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from experiments.claims import statistics
from experiments.claims.claim import MISSING, UNDECIDED, UNSOLVED, Claim, Comparison, Design

NOWHERE = (math.inf, -math.inf)  # the interval that widens none
Scores = Mapping[tuple[str, int], dict]  # arm and seed -> record of the run


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The difference of a comparison, and its interval.

  On each side the interval is the wider of those over seeds and over stretches of text.

  Attributes:
    seeds: by Student's t over the seeds.
    text: by the bootstrap over stretches of the validation text; NOWHERE where there are none.
    count: seeds.
  """

  comparison: Comparison
  seeds: statistics.Paired
  text: tuple[float, float]
  count: int

  @property
  def low(self) -> float:
    return min(self.seeds.low, self.text[0])

  @property
  def high(self) -> float:
    return max(self.seeds.high, self.text[1])


@dataclasses.dataclass(frozen=True)
class Judged:
  """A claim at one size, with its estimates and verdict.

  Attributes:
    missing: arm -> seeds whose runs have no record.
    estimates: of the comparisons whose runs are there, at 95 %.
    level: at which Holm's procedure tests the claim; None while decisive runs are missing.
    seeds_needed: to decide what is undecided, as far as it can be said.
  """

  claim: Claim
  size: str
  design: Design
  verdict: str
  missing: dict[str, list[int]]
  estimates: list[Estimate]
  level: float | None = None
  seeds_needed: int | None = None


def judge(
  claims: list[tuple[Claim, str]], records: Mapping[tuple[str, str], Scores]
) -> list[Judged]:
  """Returns each claim at its size as `Judged`, with Holm's procedure over the complete claims.

  A claim is complete if all its decisive runs are. Its p is the largest of its decisive
  comparisons, all of which have to hold.
  """
  pending, p_values = [], {}
  for claim, size in claims:
    design, scores = claim.design(size), records.get((claim.owner, size), {})
    needed = [(arm.name, seed) for arm in design.arms for seed in design.seeds]
    missing = {}
    for arm, seed in needed:
      if (arm, seed) not in scores:
        missing.setdefault(arm, []).append(seed)
    at = functools.partial(estimates, claim, design, scores)
    found = at(0.05)
    complete = [one for one in found if one.comparison.decisive and one.count == len(design.seeds)]
    is_complete = len(complete) == sum(one.decisive for one in design.comparisons)
    if is_complete:
      p_values[f'{claim.name}-{size}'] = max(one.seeds.p for one in complete)
    pending.append((Judged(claim, size, design, MISSING, missing, found), at))
  levels = statistics.holm(p_values)
  return [decide(one, at, levels.get(f'{one.claim.name}-{one.size}')) for one, at in pending]


def decide(judged: Judged, at: Callable[[float], list[Estimate]], level: float | None) -> Judged:
  """Returns the claim with its verdict at the level of Holm's procedure."""
  if level is None:
    return judged
  decisive = [one for one in at(level) if one.comparison.decisive]
  verdict, needed = judged.claim.rule(decisive), None
  if verdict == UNDECIDED:
    counts = [
      statistics.seeds_needed(one.seeds.mean, one.seeds.deviation, level) for one in decisive
    ]
    known = [count for count in counts if count is not None]
    needed = max(known) if len(known) == len(counts) else None
  return dataclasses.replace(judged, verdict=verdict, level=level, seeds_needed=needed)


def estimates(claim: Claim, design: Design, scores: Scores, alpha: float) -> list[Estimate]:
  """Returns the estimate of every comparison that has a pair of records."""
  found = []
  for comparison in design.comparisons:
    pairs = [
      [row(scores[arm, seed], comparison.set) for arm in (comparison.arm, comparison.against)]
      for seed in design.seeds
      if {(comparison.arm, seed), (comparison.against, seed)} <= scores.keys()
    ]
    if pairs:
      losses = [[loss(one, claim.measure) for one in pair] for pair in pairs]
      seeds = statistics.paired([arm - against for arm, against in losses], alpha)
      text = NOWHERE if claim.measure == UNSOLVED else over_text(pairs, alpha)
      found.append(Estimate(comparison, seeds, text, len(pairs)))
  return found


def row(record: dict, name: str) -> dict:
  """Returns the result that judges a run on a set: the exact recurrence, else parallel passes."""
  rows = [one for one in record['results'] if name in ('', one['set'])]
  usable = [one for one in rows if one['is_inference_metric']]
  return next((one for one in usable if one['form'] == 'sequential'), usable[-1])


def loss(result: dict, measure: str) -> float:
  """Returns the compared value; lower is better."""
  if measure != UNSOLVED:
    return result['cross_entropy']
  return sum(name.startswith('accuracy_') for name in result) - result['solved']


def over_text(pairs: list, alpha: float) -> tuple[float, float]:
  """Returns the bootstrap interval over stretches of text of the difference, mean over seeds."""
  first = pairs[0][0]
  differences_D = np.mean([np.subtract(arm['means'], other['means']) for arm, other in pairs], 0)
  whole = first['batch_tokens']
  last = first['targets'] - whole * (len(differences_D) - 1)
  weights = [whole] * (len(differences_D) - 1) + [last]
  return statistics.bootstrap(differences_D, weights, alpha)
