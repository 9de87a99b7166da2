"""Bytes as formulas against the arrays that decoding really holds, and floors that never guess."""

import jax
import pytest

import crt_jax
from crt_jax.decoding import prepare
from crt_jax.decoding.prepare import empty_state
from experiments.latency import floors
from tests.contract.models import CONFIGS, model_of

CONTEXT, BATCH = 9, 3


# The formula counts keys and values, not the state of a toy.
CASES = [(name, 'float32') for name in CONFIGS if name != 'odd_state']
CASES += [(name, 'bfloat16') for name in ('crt', 'cart', 'roformer')]


@pytest.mark.parametrize('name, dtype', CASES)
def test_resident_bytes_are_those_of_the_arrays(name, dtype):
  """What a step reads once is what prepared parameters and filled caches hold."""
  model = model_of(name, window=0, dtype=dtype)

  def arrays():
    params = prepare(model, model.init(jax.random.key(0)))[1]
    state = empty_state(model, params, BATCH, CONTEXT)
    return params, state.caches

  params, caches = jax.eval_shape(arrays)
  size = {name: sum(map(nbytes, jax.tree.leaves(part))) for name, part in params.items()}
  row = BATCH * model.config.width * 4
  rows = 0  # of tables of which a token reads one
  if 'positions' in params['embedding']:
    size['embedding'] -= nbytes(params['embedding']['positions'])
    rows += row
  if 'output' in params:
    rows += row
    size['embedding'] = 0
  traffic = floors.traffic(model.config, dtype, BATCH, CONTEXT)
  assert traffic.resident_weights == sum(size.values()) + rows
  assert traffic.resident_cache == sum(map(nbytes, jax.tree.leaves(caches)))


def nbytes(leaf) -> int:
  return leaf.size * leaf.dtype.itemsize


def test_a_looped_core_is_streamed_once_per_loop():
  model = model_of('cart')
  core = jax.eval_shape(lambda: model.init(jax.random.key(0))['core'])
  core_bytes = sum(map(nbytes, jax.tree.leaves(core)))
  traffic = floors.traffic(model.config, 'float32', 1, CONTEXT)
  loops = model.config.loops
  assert traffic.weights - traffic.resident_weights == (loops - 1) * core_bytes
  anchor = 2 * CONTEXT * model.config.width * 4
  assert traffic.cache - traffic.resident_cache == (loops - 1) * anchor
  per_loop = floors.traffic(model_of('cart_per_loop').config, 'float32', 1, CONTEXT)
  assert per_loop.cache == per_loop.resident_cache, 'every loop has its own'


def test_a_window_bounds_what_is_read():
  fields = CONFIGS['crt'] | dict(window=4)
  near, far = (floors.traffic(fields, 'float32', 1, c).cache for c in (3, 1000))
  assert near == far > 0
  assert floors.traffic(CONFIGS['crt'], 'float32', 1, 1000).cache > far


def test_the_model_of_the_paper():
  """598 MB of float32 weights a token: 215.0 M parameters less the token table."""
  fields = dict(name='crt', layers=1, width=2048, heads=16, vocab_size=32_000)
  traffic = floors.traffic(crt_jax.build(fields | dict(rotary='integer')).config, 'float32')
  assert round(traffic.streamed / 1e6) == 598
  assert (
    traffic.multiplies == 149_422_080 + 2 * 2048
  )  # crt.md 7: body + V*C; a position sees itself


def test_floors_of_unknown_hardware_are_zero():
  traffic = floors.traffic(CONFIGS['crt'], 'bfloat16')
  known = floors.floor(traffic, bandwidth=1e9, flops=1e12, launches=100, launch_cost=2e-6)
  assert known.streamed == traffic.streamed / 1e9 and known.launches == 100 * 2e-6
  unknown = floors.floor(traffic, bandwidth=floors.datasheet_bandwidth('cpu'))
  assert unknown == floors.Floor(0.0, 0.0, 0.0, 0.0)
  assert floors.share(unknown.streamed, 0.01) == 0.0 == floors.share(1.0, 0.0)


def test_datasheets():
  assert floors.datasheet_bandwidth('NVIDIA H200') == 4.8e12
  assert floors.datasheet_bandwidth('NVIDIA A100-SXM4-80GB') == 2.039e12
  assert floors.datasheet_bandwidth('TPU v5 lite') == 819e9
  assert floors.datasheet_bandwidth('Tesla T4') == 0.0


def test_refused():
  with pytest.raises(ValueError, match="dtype='float64' has no size here"):
    floors.traffic(CONFIGS['crt'], 'float64')
