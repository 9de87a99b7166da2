"""The two terms that predict the advantage, and where measured points lie."""

import numpy as np
import pytest

from crt_jax.evaluation import latency_figures
from crt_jax.evaluation.latency_figures import explaining_cost, predicted


def row(model, streamed, launches, seconds, **changes):
  point = dict(batch=1, context=1, dtype='float32', dispatch=16, peers={})
  return dict(model=model, floor=dict(streamed=streamed), launches=launches, seconds=seconds) | (
    point | changes
  )


MODEL = row('crt', 6e-3, 90, 7e-3)
OTHER = row('plain', 5e-3, 270, 6e-3)


def test_free_launches_leave_the_bytes_and_dear_ones_the_launches():
  assert predicted(MODEL, OTHER, 0.0) == pytest.approx(5 / 6)
  assert predicted(MODEL, OTHER, 1.0) == pytest.approx(3.0, rel=1e-3)
  ratios = predicted(MODEL, OTHER, np.logspace(-8, 0, 50))
  assert np.all(np.diff(ratios) > 0)
  cost = explaining_cost(OTHER, OTHER['seconds'])
  assert OTHER['floor']['streamed'] + OTHER['launches'] * cost == pytest.approx(OTHER['seconds'])
  assert explaining_cost(OTHER, 1e-3) == 0.0, 'faster than its floor'


def test_only_pairs_at_the_first_point_are_drawn(tmp_path):
  config = dict(batches=(1, 2), contexts=(1,), dtypes=('float32',))
  result = dict(config=config, rows=[MODEL, OTHER], paper=dict(crt=1.0, plain=2.5))
  path = tmp_path / 'advantage.png'
  assert not latency_figures.advantage(result, path) and not path.exists()
  matched = MODEL | dict(match=dict(model='plain'))
  assert latency_figures.advantage(result | dict(rows=[matched, OTHER]), path) and path.exists()
  eager = [
    one | dict(peers=dict(torch=dict(seconds=seconds, launches=launches)))
    for one, seconds, launches in ((matched, 0.02, 40), (OTHER, 0.05, 160))
  ]
  points = {words: ratio for _, _, ratio, words in latency_figures._measured(*eager, result)}
  assert points == {
    'crt_jax, one program': pytest.approx(6 / 7),
    'torch': pytest.approx(2.5),
    'paper, A100': pytest.approx(2.5),
  }
  assert not latency_figures.advantage(
    result | dict(rows=[matched | dict(batch=2), OTHER | dict(batch=2)]), path
  )
