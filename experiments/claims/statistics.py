"""Differences between models, with their uncertainty (Student 1908, Holm 1979, Efron 1979)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special


@dataclasses.dataclass(frozen=True)
class Paired:
  """The mean of paired differences, by Student's t.

  Attributes:
    deviation: standard deviation of the differences.
    p: two-sided, of a mean of 0.
    low, high: of the interval; infinite for a single pair.
  """

  mean: float
  deviation: float
  p: float
  low: float
  high: float


def paired(differences: Sequence[float], alpha: float = 0.05) -> Paired:
  """Returns the mean difference with its interval of confidence 1 - alpha.

  Pairs that all differ by the same amount leave no doubt: an interval of no width.

  Raises:
    ValueError: there is no pair.
  """
  count = len(differences)
  if not count:
    raise ValueError('no pairs: give at least one difference')
  mean = float(np.mean(differences))
  if count == 1:
    return Paired(mean, math.nan, 1.0, -math.inf, math.inf)
  deviation = float(np.std(differences, ddof=1))
  if deviation <= 1e-12 * abs(mean):
    return Paired(mean, 0.0, float(mean == 0), mean, mean)
  error = deviation / math.sqrt(count)
  reach = float(special.stdtrit(count - 1, 1 - alpha / 2)) * error
  p = 2 * float(special.stdtr(count - 1, -abs(mean) / error))
  return Paired(mean, deviation, p, mean - reach, mean + reach)


def bootstrap(
  values: Sequence[float], weights: Sequence[float], alpha: float = 0.05, draws: int = 10_000
) -> tuple[float, float]:
  """Returns the bootstrap percentile interval of a weighted mean of stretches of text.

  The seed is fixed, so the same values give the same interval.
  """
  values_D, weights_D = np.asarray(values), np.asarray(weights, float)
  drawn_NxD = np.random.default_rng(0).integers(len(values_D), size=(draws, len(values_D)))
  weights_NxD = weights_D[drawn_NxD]
  means_N = (values_D[drawn_NxD] * weights_NxD).sum(1) / weights_NxD.sum(1)
  low, high = np.quantile(means_N, [alpha / 2, 1 - alpha / 2])
  return float(low), float(high)


def holm(p_values: Mapping[str, float], alpha: float = 0.05) -> dict[str, float]:
  """Returns each hypothesis's test level; all true ones are kept with probability 1 - alpha.

  The smallest p is tested at alpha / m, the next at alpha / (m - 1), and so on; all after the first
  that is not rejected are tested at its level.
  """
  levels, level, stopped = {}, 0.0, False
  for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
    if not stopped:
      level = alpha / (len(p_values) - rank)
      stopped = p_values[name] > level
    levels[name] = level
  return levels


def seeds_needed(
  mean: float, deviation: float, alpha: float = 0.05, power: float = 0.8, most: int = 1000
) -> int | None:
  """Returns the fewest pairs for which a paired t-test has this power; None beyond `most`.

  The test is two-sided, for a difference of this mean and deviation.
  """
  if not deviation > 0:
    return 2 if deviation == 0 and mean else None
  counts = np.arange(2, most + 1)
  shifts = abs(mean) / deviation * np.sqrt(counts)
  limits = special.stdtrit(counts - 1, 1 - alpha / 2)
  powers = (
    special.nctdtr(counts - 1, shifts, -limits) + 1 - special.nctdtr(counts - 1, shifts, limits)
  )
  enough = np.flatnonzero(powers >= power)
  return int(counts[enough[0]]) if enough.size else None
