"""The small CRT of the laws: float64, matrices but the embedding x4, so that nothing contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import crt_jax

BATCH, LENGTH = 2, 3
BASE = dict(name='crt', vocab_size=11, width=8, heads=2, layers=1, rotary='integer_reversed')


def params_of(model, seed: int = 0):
  """PyTorch's initialisation (crt.md 2.6), all matrices but the embedding x4."""
  generator = np.random.default_rng(seed)

  def draw(path, a):
    values = generator.uniform(-1, 1, a.shape) * BASE['width'] ** -0.5
    if path[0].key == 'embedding':
      return generator.standard_normal(a.shape)
    if path[-1].key == 'weight':
      return 4 * values
    return 1.0 + values if path[-1].key == 'scale' else values

  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def tokens_of(batch: int = BATCH, length: int = LENGTH, seed: int = 0):
  return jax.device_put(np.random.default_rng(seed).integers(0, 11, (batch, length)))


def problem(**changes):
  """Model, parameters, tokens."""
  model = crt_jax.build(BASE | changes)
  return model, params_of(model), tokens_of()


@functools.cache
def prepared(**changes):
  """Model, parameters, tokens, exact logits."""
  model, params, tokens = problem(**changes)
  return model, params, tokens, model.sequential(params, tokens)


def loss_and_gradient(model, params, tokens, key=None):
  """The loss on the next tokens (of the last position: the first token), and its gradient."""
  batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1))
  loss = lambda params: model.loss(params, batch, key=key)[0]  # noqa: E731
  return jax.jit(jax.value_and_grad(loss))(params)


def largest_gap(one, other) -> float:
  """The largest difference between two trees, over the largest magnitude of the second."""
  size = max(np.abs(a).max() for a in jax.tree.leaves(other))
  gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, other)
  return float(max(jax.tree.leaves(gaps)) / size)
