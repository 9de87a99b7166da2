"""The two terms that predict the advantage, and where measured points lie."""

import numpy as np
import pytest

from experiments.latency import figures
from experiments.latency.figures import explaining_price, predicted, weights_at

SPEED = 1e9  # weights per second


def row(model, weights, launches, seconds, **changes):
  point = dict(batch=1, context=1, dtype='float32', dispatch=16, peers={})
  traffic = dict(weights=4 * weights, cache=0)
  return dict(model=model, traffic=traffic, launches=launches, seconds=seconds) | point | changes


MODEL = row('crt', 6e6, 90, 7e-3)
OTHER = row('plain', 5e6, 270, 6e-3)


def test_free_launches_leave_the_weights_and_dear_ones_the_launches():
  assert predicted(MODEL, OTHER, 0.0) == pytest.approx(5 / 6)
  assert predicted(MODEL, OTHER, 1e9) == pytest.approx(3.0, rel=1e-3)
  assert np.all(np.diff(predicted(MODEL, OTHER, np.logspace(0, 9, 50))) > 0)
  price = explaining_price(OTHER, SPEED)
  assert weights_at(OTHER, price) == pytest.approx(6e6), 'weights that take its time'
  assert explaining_price(OTHER, SPEED / 2) == 0.0, 'faster than its floor'


def test_only_pairs_at_the_first_point_are_drawn(tmp_path):
  config = dict(batches=(1, 2), contexts=(1,), dtypes=('float32',))
  result = dict(
    config=config,
    rows=[MODEL, OTHER],
    paper=dict(crt=1.0, plain=2.5),
    machine=dict(bandwidth=4 * SPEED, launch=2e-6),
  )
  path = tmp_path / 'advantage.png'
  assert not figures.advantage(result, path) and not path.exists()
  matched = MODEL | dict(match=dict(model='plain'))
  assert figures.advantage(result | dict(rows=[matched, OTHER]), path) and path.exists()
  eager = [
    one | dict(peers=dict(torch=dict(seconds=seconds, launches=launches, launch=9e-6)))
    for one, seconds, launches in ((matched, 0.02, 40), (OTHER, 0.05, 160))
  ]
  points = {kind: [price, ratio] for kind, price, ratio in figures._measured(*eager, result)}
  assert points == {
    figures.ONE_PROGRAM: [pytest.approx(2000), pytest.approx(6 / 7)],
    figures.EAGER: [pytest.approx(9000), pytest.approx(2.5)],
    # 2.5 ms of an A100, 2039 GB/s: 2.55e9 weights of two bytes each.
    figures.PAPER: [pytest.approx((2.5e-3 * 2039e9 / 2 - 5e6) / 160), pytest.approx(2.5)],
  }
  assert not figures.advantage(
    result | dict(rows=[matched | dict(batch=2), OTHER | dict(batch=2)]), path
  )
