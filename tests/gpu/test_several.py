"""What only several NVIDIA GPUs can show: `make test-gpu` on a machine with two or more. Nobody has
run it yet; the same on simulated devices is in tests/contract/test_sharded.py."""

import jax
import numpy as np
import pytest

import crt_jax
from benchmarks import train as benchmark
from crt_jax import placing, sharding
from crt_jax.runs import train_state
from crt_jax.training import optimizer, step
from tests.gpu.test_gpu import REASON

COUNT = 0 if REASON else jax.device_count()
pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(
    COUNT < 2, reason=REASON or f'needs two NVIDIA GPUs or more, and JAX found {COUNT}'
  ),
]
STEPS, ROWS = 3, 8


def losses(case, **sizes):
  """Of a few steps on the first devices of the mesh."""
  config = benchmark.config_of(case, smoke=True)
  config.model.update(dropout=0.0, dtype='float32', attention_kernel='xla')
  config.data.batch_size, config.train.accumulation = ROWS, 1
  sizes = dict(data=1, fsdp=1, tensor=1) | sizes
  mesh = sharding.make_mesh(sizes, jax.devices()[: max(sizes.values())])
  model = crt_jax.build(config.model)
  tx = optimizer.make_optimizer(config.optimizer, model, STEPS)
  abstract = train_state.abstract_state(model, tx, mesh)
  depth = (model.depths() or (None,))[-1]
  train = step.make_train_step(model, tx, lambda _: 1e-3, config, abstract, mesh, depth)
  state, place = train_state.init_state(model, tx, abstract, 0), placing.on_mesh(ROWS, mesh)
  generator, found = np.random.default_rng(0), []
  shape = ROWS, config.data.sequence_length + 1
  for _ in range(STEPS):
    tokens = generator.integers(0, config.model.vocab_size, shape, np.int32)
    state, metrics = train(state, place(dict(tokens=tokens[:, :-1], targets=tokens[:, 1:])))
    found.append(float(metrics['loss']))
  return found


@pytest.mark.parametrize('axis', sharding.MESH_AXES)
@pytest.mark.parametrize('case', ['crt_d5_c1120', 'cart_d1024', 'transformer_n12'])
def test_the_losses_of_one(case, axis):
  """Only the order of sums differs; by default a GPU computes float32 products in TF32."""
  count = 2 if axis == 'tensor' else min(1 << COUNT.bit_length() - 1, ROWS)
  with jax.default_matmul_precision('highest'):
    np.testing.assert_allclose(losses(case, **{axis: count}), losses(case), rtol=1e-5)
