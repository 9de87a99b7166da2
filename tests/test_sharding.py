"""The table of rules: what lies where, what is refused, and that a mesh changes no result."""

import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import crt_jax
from crt_jax import sharding
from tests.training.fake_model import FakeModel, fake_batch
from tests.training.test_step import run_steps


def mesh_config(data=-1, fsdp=1, tensor=1):
  return ml_collections.ConfigDict(dict(data=data, fsdp=fsdp, tensor=tensor))


def test_rules_place_heads_width_and_vocabulary():
  mesh = sharding.make_abstract_mesh(data=2, fsdp=2, tensor=2)
  spec = lambda *args: sharding.spec_of('w', *args, mesh)  # noqa: E731
  assert spec(P('layers', 'qkv', 'heads', 'head_width', 'width'), (2, 3, 4, 8, 32)) == P(
    None, None, 'tensor', None, 'fsdp'
  )
  assert spec(P('vocab', 'width'), (64, 32)) == P('tensor', 'fsdp')
  assert spec(P('width', 'feed_forward'), (32, 128)) == P('fsdp', 'tensor')


def test_mesh_axis_of_size_one_is_left_out():
  assert sharding.spec_of('w', P('vocab', 'width'), (7, 7), sharding.make_abstract_mesh(8)) == P(
    None, None
  )


def test_fsdp_takes_another_dimension_or_replicates():
  mesh = sharding.make_abstract_mesh(fsdp=4)
  up = P('keys_values', 'heads', 'head_width', 'latent')
  assert sharding.spec_of('w', up, (2, 8, 64, 128), mesh) == P(None, None, None, 'fsdp')
  assert sharding.spec_of('w', P('latent', 'width'), (128, 512), mesh) == P(None, 'fsdp')
  assert sharding.spec_of('w', P('history'), (4,), mesh) == P(None)
  assert sharding.spec_of('w', P('vocab', 'width'), (64, 30), mesh) == P('fsdp', None)
  assert sharding.spec_of('w', P('vocab', 'width'), (63, 30), mesh) == P(None, None)


@pytest.mark.parametrize(
  ('axes', 'shape', 'message'),
  [
    (
      P('heads', 'width'),
      (6, 32),
      r'blocks/w, dimension 0 \(heads, 6\).*tensor=4; use mesh.tensor=3, or 4 or 8',
    ),
    (
      P('heads', 'feed_forward'),
      (8, 32),
      r"blocks/w: dimensions 0 and 1 .* both lie on mesh axis 'tensor'",
    ),
    (P('wdith', None), (8, 32), r"blocks/w, dimension 0: axis 'wdith' has no rule"),
    (P('heads'), (8, 32), r'blocks/w: 1 axis names'),
  ],
)
def test_wrong_axes_name_parameter_and_fix(axes, shape, message):
  mesh = sharding.make_abstract_mesh(fsdp=2, tensor=4)
  with pytest.raises(ValueError, match=message):
    sharding.param_shardings(
      {'blocks': {'w': axes}}, {'blocks': {'w': jax.ShapeDtypeStruct(shape, 'float32')}}, mesh
    )


def test_axes_that_miss_a_parameter_are_refused():
  mesh = sharding.make_abstract_mesh()
  shapes = {'a': jax.ShapeDtypeStruct((2,), 'float32'), 'b': jax.ShapeDtypeStruct((2,), 'float32')}
  with pytest.raises(ValueError, match='differ in: b'):
    sharding.param_shardings({'a': P(None)}, shapes, mesh)


def test_mesh_sizes():
  assert sharding.mesh_shape(mesh_config(fsdp=4), 8) == {'data': 2, 'fsdp': 4, 'tensor': 1}
  with pytest.raises(ValueError, match='8 devices; mesh.fsdp x mesh.tensor must divide'):
    sharding.mesh_shape(mesh_config(fsdp=3), 8)
  with pytest.raises(ValueError, match='mesh.data=2.*8 devices'):
    sharding.mesh_shape(mesh_config(data=2), 8)
  with pytest.raises(ValueError, match='mesh.tensor=0'):
    sharding.mesh_shape(mesh_config(tensor=0), 8)


def test_what_would_fit_is_named():
  mesh = sharding.make_abstract_mesh(tensor=2)
  with pytest.raises(sharding.Unfit, match='use mesh.tensor=1, or 50258 vocab$'):
    sharding.spec_of('embedding/weight', P('vocab', 'width'), (50257, 8), mesh)
  with pytest.raises(sharding.Unfit, match='use mesh.tensor=1, or 2 heads$'):
    sharding.spec_of('q', P('heads', 'width'), (1, 8), mesh)
  with pytest.raises(ValueError, match='--tensor=99 needs 99 devices, there are 8'):
    sharding.tensor_mesh(99)


def test_batch_that_does_not_divide_is_refused():
  mesh = sharding.make_abstract_mesh(data=2, fsdp=4)
  sharding.check_batch(16, 2, mesh)
  with pytest.raises(ValueError, match='data.batch_size=20 must be divisible by 16.*use 16 or 32'):
    sharding.check_batch(20, 2, mesh)
  with pytest.raises(ValueError, match='use 16$'):
    sharding.check_batch(3, 2, mesh)


@pytest.mark.parametrize(
  'shape', [dict(data=8), dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2)]
)
def test_eight_devices_give_the_losses_of_one(shape):
  """Only the order of float32 sums differs: 1e-6 relative on the loss over five steps, dropout and
  accumulation on."""
  model = FakeModel(dropout=0.2)
  batches = [fake_batch(i, batch=16, uncounted=2) for i in range(5)]
  _, one = run_steps(model, batches, accumulation=2)
  mesh = sharding.make_mesh(mesh_config(**shape), jax.devices()[:8])
  state, eight = run_steps(model, batches, accumulation=2, mesh=mesh)
  assert len(state.params['core']['weight'].sharding.device_set) == 8
  np.testing.assert_allclose(
    [row['loss'] for row in eight], [row['loss'] for row in one], rtol=1e-6
  )


class InSlice:
  """A device of this machine that says that it lies in a slice."""

  def __init__(self, device, slice_index):
    self.device, self.slice_index = device, slice_index

  def __getattr__(self, name):
    return getattr(self.device, name)


def in_slices(*numbers):
  return [InSlice(*pair) for pair in zip(jax.devices(), numbers, strict=True)]


TWO, FOUR = (0, 1, 1, 0) * 2, (3, 1, 2, 0) * 2  # in no order


@pytest.mark.parametrize(
  ('shape', 'across', 'slices', 'crossed'),
  [
    (dict(data=2, fsdp=4), 'any', TWO, (2, 1, 1)),
    (dict(data=4, tensor=2), 'any', TWO, (2, 1, 1)),
    (dict(data=1, fsdp=8), 'any', TWO, (1, 2, 1)),
    (dict(data=2, fsdp=4), 'any', FOUR, (2, 2, 1)),
    (dict(data=2, fsdp=2, tensor=2), 'fsdp', TWO, (1, 2, 1)),
    (dict(data=2, fsdp=2, tensor=2), 'tensor', TWO, (1, 1, 2)),
  ],
)
def test_one_axis_crosses_the_slow_network(shape, across, slices, crossed):
  config = mesh_config(**shape)
  config.across = across
  devices = sharding.arranged(config, in_slices(*slices))
  number = np.vectorize(lambda device: device.slice_index)(devices)
  for axis, count in enumerate(crossed):
    lines = np.moveaxis(number, axis, -1).reshape(-1, number.shape[axis])
    assert all(len(set(line)) == count for line in lines), number
  assert sorted(device.id for device in devices.flat) == list(range(8))


@pytest.mark.parametrize(
  ('across', 'slices', 'message'),
  [
    ('fsdp', FOUR, "mesh.across='fsdp': mesh.fsdp=2 cannot be laid over 4 .* a multiple of 4"),
    ('data', (0,) * 5 + (1,) * 3, 'over 2 slices or nodes of 3, 5 devices.*as many'),
  ],
)
def test_an_axis_that_cannot_cross_is_refused(across, slices, message):
  config = mesh_config(fsdp=2)
  config.across = across
  with pytest.raises(ValueError, match=message):
    sharding.arranged(config, in_slices(*slices))
  assert sharding.arranged(mesh_config(fsdp=2), in_slices(*slices)).shape == (4, 2, 1)


def test_slices_give_the_losses_of_the_plain_mesh(monkeypatch):
  model, config = FakeModel(dropout=0.2), mesh_config(data=2, fsdp=2, tensor=2)
  batches = [fake_batch(i, batch=16, uncounted=2) for i in range(2)]
  mesh = sharding.make_mesh(config)
  _, plain = run_steps(model, batches, mesh=mesh)
  arranged, places = sharding.arranged, [mesh.devices.tolist()]
  for config.across in ('data', 'fsdp', 'tensor'):
    placed = arranged(config, in_slices(*TWO))
    on_devices = np.vectorize(lambda placed: placed.device, otypes=[object])(placed)
    monkeypatch.setattr(sharding, 'arranged', lambda *_, found=on_devices: found)
    mesh = sharding.make_mesh(config)
    assert mesh.devices.tolist() not in places
    places.append(mesh.devices.tolist())
    _, hybrid = run_steps(model, batches, mesh=mesh)
    np.testing.assert_allclose(
      [row['loss'] for row in hybrid], [row['loss'] for row in plain], rtol=1e-6
    )


def test_weights_are_gathered_not_activations():
  """FSDP moves parameters between devices; an activation of [rows, T, ...] in a collective means
  the batch is not split."""
  length = 24
  model = crt_jax.build(
    dict(name='crt', vocab_size=48, width=32, heads=2, layers=1, depth=2, rotary='standard')
  )
  mesh = sharding.make_mesh(mesh_config(data=2, fsdp=4), jax.devices()[:8])
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  shardings = sharding.param_shardings(model.axes(), shapes, mesh)
  tokens = jax.ShapeDtypeStruct((16, length), jnp.int32)

  def gradient(params, tokens):
    with sharding.in_mesh(mesh):
      return jax.grad(lambda p: model.loss(p, {'tokens': tokens, 'targets': tokens})[0])(params)

  rows = sharding.batch_sharding(mesh)
  jitted = jax.jit(gradient, in_shardings=(shardings, rows), out_shardings=shardings)
  text = jitted.lower(shapes, tokens).compile().as_text()
  collectives = re.findall(r'= (.*) (?:all-gather|all-reduce|all-to-all|reduce-scatter)\(', text)
  moved = {shape for result in collectives for shape in re.findall(r'\[([\d,]*)\]', result)}
  assert any(shape == '3,2,16,32' for shape in moved), moved  # the q|k|v weights of one layer
  activations = {shape for shape in moved if shape.split(',')[1:2] == [str(length)]}
  assert not activations, 'models must call sharding.split_rows on their embeddings'


def test_split_rows_is_the_identity_where_it_must_be():
  x = jnp.ones((6, 4))
  assert sharding.split_rows(x) is x  # no mesh
  with sharding.in_mesh(sharding.make_abstract_mesh(data=2, fsdp=2)):
    assert jax.eval_shape(sharding.split_rows, x).shape == (6, 4)  # 6 rows on 4 devices
