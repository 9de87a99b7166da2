"""Against published numbers, and against what intervals and levels promise."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.claims import statistics

# Extra hours of sleep by two drugs, ten patients: Student (1908), The probable error of a mean.
FIRST = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SECOND = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def test_student_s_own_pairs():
  found = statistics.paired(np.subtract(FIRST, SECOND))
  assert found.mean == pytest.approx(-1.58)
  assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
  assert found.p == pytest.approx(0.002833, abs=1e-6)
  assert found.p == pytest.approx(stats.ttest_rel(FIRST, SECOND).pvalue)


def test_few_pairs():
  with pytest.raises(ValueError, match='at least one'):
    statistics.paired([])
  one = statistics.paired([0.3])
  assert (one.low, one.high, one.p) == (-math.inf, math.inf, 1.0)
  alike = statistics.paired([-8.0, -8.0, -8.0])
  assert (alike.low, alike.high, alike.p) == (-8.0, -8.0, 0.0)
  assert statistics.paired([0.0, 0.0]).p == 1.0


def test_intervals_cover_the_mean_as_often_as_they_say():
  draws_NxS = np.random.default_rng(1).normal(0.2, 1.0, (1000, 3))
  found = [statistics.paired(row, alpha=0.1) for row in draws_NxS]
  assert np.mean([one.low < 0.2 < one.high for one in found]) == pytest.approx(0.9, abs=0.03)
  stretches_NxD = np.random.default_rng(2).normal(0.2, 1.0, (300, 60))
  found = [statistics.bootstrap(row, np.ones(60), 0.1, draws=400) for row in stretches_NxD]
  assert np.mean([low < 0.2 < high for low, high in found]) == pytest.approx(0.9, abs=0.05)


def test_the_bootstrap_weighs_stretches_and_is_the_same_each_time():
  values, weights = [1.0, 2.0, 30.0], [100, 100, 0]
  low, high = statistics.bootstrap(values[:2], weights[:2])
  assert (low, high) == (1.0, 2.0)
  assert statistics.bootstrap([4.0, 4.0], [1, 3]) == (4.0, 4.0)
  many = np.arange(20.0)
  assert statistics.bootstrap(many, many + 1) == statistics.bootstrap(many, many + 1)


def test_holm_s_levels():
  """Holm (1979): 0.01 is tested at 0.05 / 4, 0.013 at 0.05 / 3; 0.03 fails at 0.05 / 2, and with it
  all that follow."""
  levels = statistics.holm({'d': 0.04, 'a': 0.01, 'c': 0.03, 'b': 0.013})
  expected = {'a': 0.05 / 4, 'b': 0.05 / 3, 'c': 0.05 / 2, 'd': 0.05 / 2}
  assert levels == pytest.approx(expected)
  assert statistics.holm({}) == {}


@pytest.mark.parametrize('effect, pairs', [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_are_those_of_the_tables(effect, pairs):
  """Cohen's small, medium and large effect at 5 % and a power of 80 %, as G*Power has them."""
  assert statistics.seeds_needed(-effect, 1.0) == pairs


def test_seeds_that_cannot_be_computed():
  assert statistics.seeds_needed(0.001, 1.0) is None
  assert statistics.seeds_needed(0.1, math.nan) is None
  assert statistics.seeds_needed(0.1, 0.0) == 2
  assert statistics.seeds_needed(0.0, 0.0) is None
