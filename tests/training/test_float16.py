"""float16 training: the loss is scaled so that gradients neither vanish nor overflow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import crt_jax
from crt_jax import sharding
from crt_jax.runs.train_state import TrainState
from crt_jax.training.step import SCALES, finite_gradients, train_step
from tests.conftest import needs_float16

pytestmark = needs_float16

FIELDS = dict(name='crt', vocab_size=64, width=32, heads=2, layers=2, depth=2, rotary='integer')
BATCH, LENGTH = 8, 16


@dataclasses.dataclass(frozen=True)
class Shrunk:
  """A model whose loss, and so every gradient, is `share` of the real one."""

  model: object
  share: float

  @property
  def dtype(self):
    return self.model.dtype

  def probes(self, depth):
    return self.model.probes(depth)

  def loss(self, *args, **kwargs):
    loss, metrics = self.model.loss(*args, **kwargs)
    return loss * self.share, metrics


def kept_gradients() -> optax.GradientTransformation:
  """An optimiser whose state is the last gradient, and which changes nothing."""
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  return optax.GradientTransformation(zeros, lambda g, state, params=None: (zeros(g), g))


def gradients(dtype, share=1.0, accumulation=1, telemetry=False, mesh=None):
  """Of one training step; and its metrics."""
  model = Shrunk(crt_jax.build(FIELDS | dict(dtype=dtype)), share)
  params = model.model.init(jax.random.key(1))
  tokens = jax.random.randint(jax.random.key(0), (BATCH, LENGTH), 0, 64)
  batch, optimizer = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1)), kept_gradients()
  state = TrainState(jnp.int32(0), params, optimizer.init(params))
  own_rows = None
  if mesh is not None:
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    shardings = sharding.param_shardings(model.model.axes(), params, mesh)
    own_rows = sharding.own_row_specs(jax.device_put(params, shardings), 'step', mesh)

  def step(state, batch):
    arguments = (model, optimizer, lambda _: 0.0, 0, accumulation, state, batch)
    return train_step(*arguments, depth=None, telemetry=telemetry, own_rows=own_rows)

  if mesh is not None:
    with sharding.in_mesh(mesh):
      state, metrics = jax.jit(step)(state, batch)
  else:
    state, metrics = jax.jit(step)(state, batch)
  return jax.device_get((state.opt_state, metrics))


def gap(found, expected) -> float:
  """The norm of the difference over that of `expected`."""
  norm = lambda tree: np.sqrt(sum(np.sum(np.float64(a) ** 2) for a in jax.tree.leaves(tree)))  # noqa: E731
  return norm(jax.tree.map(lambda a, b: np.float64(a) - b, found, expected)) / norm(expected)


@pytest.mark.parametrize('share', (2.0**-12, 2.0**8))
def test_gradients_are_those_of_float32(share):
  """2^-12 of 128 targets' gradients are as small as those of 524,288 targets, where a fifth of them
  was lost; 2^8 of them overflow at the first scale."""
  expected, metrics = gradients('float32', share)
  found, same = gradients('float16', share)
  assert gap(found, expected) < 2e-3  # two units in the last of 11 bits
  np.testing.assert_allclose(same['grad_norm'], metrics['grad_norm'], rtol=2e-3)
  np.testing.assert_allclose(same['loss'], metrics['loss'], rtol=2e-3)


def test_statistics_and_slices_are_scaled_back():
  expected, metrics = gradients('float32', accumulation=2, telemetry=True)
  found, same = gradients('float16', accumulation=2, telemetry=True)
  assert gap(found, expected) < 2e-3
  for name in ('loss', 'state_gradient_norm', 'residual'):
    np.testing.assert_allclose(same[name], metrics[name], rtol=2e-3)


@pytest.mark.slow
def test_each_device_on_its_own_rows():
  mesh = sharding.make_mesh(dict(data=4, fsdp=1, tensor=1), jax.devices()[:4])
  assert gap(gradients('float16', 2.0**-12, mesh=mesh)[0], gradients('float16', 2.0**-12)[0]) < 2e-3


def test_the_largest_scale_that_is_finite():
  """In float16, whose largest number is 65,504."""

  def at(gradient, loss=1.0):
    def gradients_at(scale):
      scaled = (jnp.float32(gradient) * scale).astype(jnp.float16).astype(jnp.float32)
      return ({'w': scaled / scale}, scale), {'loss': jnp.float32(loss)}

    return jax.device_get(jax.jit(lambda: finite_gradients(gradients_at)[0])())

  for gradient, scale in ((0.5, 2**16), (3.0, 2**12), (100.0, 2**8), (60_000.0, 1.0)):
    found = at(gradient)
    assert found[0]['w'] == gradient and found[1] == scale
  overflown = at(1e6)
  assert np.isinf(overflown[0]['w']) and overflown[1] == SCALES[-1]
  assert at(1e6, np.nan)[1] == SCALES[0]  # another scale would not help
