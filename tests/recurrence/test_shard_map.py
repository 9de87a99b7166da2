"""Rows spread by `jax.shard_map` under its default check: losses and gradients are the whole's."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

import crt_jax
from tests.recurrence.scaled import BASE, largest_gap, params_of, tokens_of

pytestmark = pytest.mark.usefixtures('float64')

CHUNKED, SEQUENTIAL = dict(driver='chunked', chunk=2, depth=2), dict(driver='sequential')
CASES = {
  'unroll': dict(depth=3, convergence_weight=0.3),
  'chunked': CHUNKED | dict(window=3, convergence_weight=0.3),
  'sequential': SEQUENTIAL,
  'last_passes': dict(depth=3, gradient='last_passes', gradient_reach=1),
  'implicit': dict(depth=3, gradient='implicit', gradient_reach=3),
  'chunked_scan': CHUNKED | dict(backward='scan', correction='sa'),
  'segments': SEQUENTIAL | dict(backward='segments'),
  'truncated': SEQUENTIAL | dict(gradient='truncated', gradient_reach=2),
}
SLOW = ('unroll', 'last_passes', 'implicit', 'chunked_scan', 'segments', 'truncated')
ROWS = PartitionSpec('data')


def over_devices(function, out_specs, count=4):
  mesh = jax.make_mesh((count,), ('data',), axis_types=(AxisType.Auto,))
  return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), ROWS), out_specs=out_specs)


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_loss_and_gradient(name):
  model = crt_jax.build(BASE | CASES[name])
  params, tokens = params_of(model), tokens_of(batch=4, length=5)
  loss = lambda params, tokens: model.loss(params, dict(tokens=tokens, targets=tokens))[0]  # noqa: E731
  mean = over_devices(lambda *own: jax.lax.pmean(loss(*own), 'data'), PartitionSpec())
  expected = jax.jit(jax.value_and_grad(loss))(params, tokens)
  assert largest_gap(jax.jit(jax.value_and_grad(mean))(params, tokens), expected) < 1e-12


def test_a_loss_in_chunks_of_the_vocabulary():
  model = crt_jax.build(BASE | dict(vocab_size=2**17, loss_chunk_mib=1))
  params = jax.eval_shape(model.init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((4, 5), jnp.int32)
  loss = lambda params, tokens: model.loss(params, dict(tokens=tokens, targets=tokens))[0]  # noqa: E731
  mean = over_devices(lambda *own: jax.lax.pmean(loss(*own), 'data'), PartitionSpec())
  assert jax.eval_shape(jax.grad(mean), params, rows).keys() == params.keys()


def test_the_sequential_form():
  model = crt_jax.build(BASE)
  params, tokens = params_of(model), tokens_of(batch=4)
  found = jax.jit(over_devices(model.sequential, ROWS))(params, tokens)
  assert largest_gap(found, model.sequential(params, tokens)) < 1e-12


def test_gradient_norms_between_passes():
  model = crt_jax.build(BASE | dict(depth=3))
  params, tokens = params_of(model), tokens_of(batch=4)

  def loss(probe_R, tokens):
    return model.loss(params, dict(tokens=tokens, targets=tokens), probe_R=probe_R)[0]

  mean = over_devices(lambda *own: jax.lax.pmean(loss(*own), 'data'), PartitionSpec())
  probe_R = jnp.zeros(model.probes())
  expected = jax.jit(jax.grad(loss))(probe_R, tokens)
  assert largest_gap(jax.jit(jax.grad(mean))(probe_R, tokens), expected) < 1e-12
