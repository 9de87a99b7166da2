"""Every model on eight devices: the loss and the gradient of one device on each shape of the mesh,
and the same text."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from crt_jax import decoding, sharding
from crt_jax.decoding.prepare import empty_state
from tests.contract.models import CONFIGS, model_of, params_of, tokens_of

# In float64 and with weights that do not contract, so that sums in another order leave 1e-12 and a
# wrong share of anything would show. In float32 losses differ by 1e-6 (tests/test_sharding.py).
TOLERANCE = dict(rtol=1e-9, atol=1e-10)

SHAPES = {
  'replicas': dict(data=8),
  'fsdp': dict(fsdp=8),
  'replicas_fsdp': dict(data=2, fsdp=4),
  'replicas_tensor': dict(data=4, tensor=2),
  'fsdp_tensor': dict(fsdp=4, tensor=2),
  'all': dict(data=2, fsdp=2, tensor=2),
}
# The mesh with all axes is tried with every model, each other shape with one model; the rest of the
# product is left to `make test-exhaustive`.
FAST = ('crt_sa', 'crt_cart', 'crt_llama', 'odd_state', 'cart', 'gpt2')


def every(others):
  """All models on all shapes; `others` marks the models that `make test` leaves out."""

  def marks_of(name, shape):
    if shape == 'all':
      return () if name in FAST else others
    return pytest.mark.slow if name == 'crt_sa' else pytest.mark.exhaustive

  shapes = [(name, shape) for name in CONFIGS for shape in SHAPES]
  return [pytest.param(*each, marks=marks_of(*each)) for each in shapes]


VOCAB = 24  # divides by the tensor axis


def mesh_of(shape):
  config = ml_collections.ConfigDict({**dict(data=1, fsdp=1, tensor=1), **SHAPES[shape]})
  return sharding.make_mesh(config, jax.devices()[:8])


@functools.cache
def prepared(name):
  model = model_of(name, vocab_size=VOCAB, dropout=0.2)
  tokens = tokens_of(model, batch=8)
  batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1).at[:3, -1].set(-1))
  return model, params_of(model, dtype='float64'), batch


def loss_and_gradient(model, params, batch):
  key = jax.random.key(5)
  return jax.value_and_grad(lambda p: model.loss(p, batch, key=key)[0])(params)


@functools.cache
def on_one_device(name):
  model, params, batch = prepared(name)
  return jax.jit(functools.partial(loss_and_gradient, model))(params, batch)


@pytest.mark.parametrize(('name', 'shape'), every(pytest.mark.slow))
def test_loss_and_gradient_of_one_device(float64, name, shape):
  model, params, batch = prepared(name)
  mesh = mesh_of(shape)
  shardings = sharding.param_shardings(model.axes(), params, mesh)

  def of_mesh(params, batch):
    with sharding.in_mesh(mesh):
      return loss_and_gradient(model, params, batch)

  rows = sharding.batch_sharding(mesh)
  jitted = jax.jit(
    of_mesh,
    in_shardings=(shardings, rows),
    out_shardings=(sharding.replicated(mesh), shardings),
  )
  loss, gradient = jitted(jax.device_put(params, shardings), jax.device_put(batch, rows))
  expected_loss, expected_gradient = on_one_device(name)
  np.testing.assert_allclose(loss, expected_loss, **TOLERANCE)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), gradient, expected_gradient
  )
  if 'tensor' in SHAPES[shape]:
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    asked = [
      any(sharding.RULES[name] == 'tensor' for name in axes if name is not None)
      for axes in jax.tree.leaves(model.axes(), is_leaf=is_spec)
    ]
    split = ['tensor' in a.spec for a in jax.tree.leaves(shardings)]
    assert split == asked and sum(split) >= 5, 'heads, hidden units and vocabulary are split'


@pytest.mark.parametrize(('name', 'shape'), every(pytest.mark.exhaustive))
def test_each_device_on_its_own_rows(float64, name, shape):
  """The same loss and gradient, of the same dropped units, where weights are gathered once."""
  model, params, batch = prepared(name)
  mesh = mesh_of(shape)
  shardings = sharding.param_shardings(model.axes(), params, mesh)

  def gradient(params, batch, key):
    of_loss = jax.value_and_grad(lambda p: model.loss(p, batch, key=key), has_aux=True)
    (loss, metrics), gradient = of_loss(params)
    return gradient, {'loss': loss, **metrics}

  params = jax.device_put(params, shardings)
  specs = sharding.own_row_specs(params, 'step', mesh)

  @functools.partial(jax.jit, out_shardings=(shardings, sharding.replicated(mesh)))
  def of_mesh(params, batch):
    with sharding.in_mesh(mesh):
      return sharding.on_own_rows(gradient, specs)(params, batch, jax.random.key(5))

  batch = jax.device_put(batch, sharding.batch_sharding(mesh))
  found, metrics = of_mesh(params, batch)
  expected_loss, expected = on_one_device(name)
  np.testing.assert_allclose(metrics['loss'], expected_loss, **TOLERANCE)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)


TEXTS = [
  name if name in ('crt_sa', 'cart') else pytest.param(name, marks=pytest.mark.slow)
  for name in (
    'crt',
    'crt_sa',
    'crt_cart',
    'odd_state',
    'cart',
    'cart_per_loop',
    'roformer',
    'cart_dense',
    'llama',
    'crt_gpt2',
  )
]


@pytest.mark.parametrize('name', TEXTS)
def test_split_models_write_the_same_text(name):
  model = model_of(name, vocab_size=VOCAB)
  params = params_of(model)
  arguments = dict(
    num_tokens=9, context=20, seed=3, chunk=4, sampling=decoding.Sampling(temperature=0.7, top_k=9)
  )
  prompts = [[1, 2, 3], [4]]
  _, whole = decoding.prepare(model, params)
  expected = decoding.generate(model, whole, prompts, **arguments)
  mesh = sharding.tensor_mesh(2)
  split = jax.device_put(params, sharding.param_shardings(model.axes(), params, mesh))
  _, split = decoding.prepare(model, split)
  assert decoding.generate(model, split, prompts, **arguments) == expected
  if name == 'odd_state':  # it has neither layers nor heads
    return
  leaves = jax.tree_util.tree_leaves_with_path(split)
  is_index = lambda key: isinstance(key, jax.tree_util.SequenceKey)  # noqa: E731
  stacks = [a for path, a in leaves if any(map(is_index, path))]
  assert any('tensor' in a.sharding.spec for a in stacks), 'layers stay split'
  caches = empty_state(model, split, 2, 8).caches
  assert all('tensor' in a.sharding.spec for a in jax.tree.leaves(caches)), 'heads of the caches'


def test_caches_are_split_where_they_divide():
  mesh = sharding.make_abstract_mesh(data=2, fsdp=2, tensor=2)
  assert sharding.cache_spec((1, 8, 2, 5, 4), mesh) == P(None, ('data', 'fsdp'), 'tensor')
  assert sharding.cache_spec((1, 6, 3, 5, 4), mesh) == P(None, None, None)
