"""The smallest model that keeps the contract of the trainer: an embedding, a looped square map, an
output layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from crt_jax import sharding


@dataclasses.dataclass(frozen=True)
class FakeModel:
  vocab: int = 16
  width: int = 8
  dropout: float = 0.0
  dtype: str = 'float32'
  draw: tuple[int, ...] = ()  # depths that training draws from; () = no depth, as a transformer

  def init(self, key):
    keys = jax.random.split(key, 3)
    return {
      'embedding': {'weight': jax.random.normal(keys[0], (self.vocab, self.width))},
      'core': {
        'weight': 0.3 * jax.random.normal(keys[1], (self.width, self.width)),
        'bias': jnp.full(self.width, 0.1),
      },
      'head': {
        'weight': jax.random.normal(keys[2], (self.vocab, self.width)),
        'bias': jnp.zeros(self.vocab),
      },
    }

  def axes(self):
    return {
      'embedding': {'weight': P('vocab', 'width')},
      'core': {'weight': P('feed_forward', 'width'), 'bias': P('feed_forward')},
      'head': {'weight': P('vocab', 'width'), 'bias': P('vocab')},
    }

  def decayed(self):
    return jax.tree.map(lambda _: True, self.axes())

  def depths(self):
    return self.draw or None

  def depth_at(self, seed, step):
    if not self.draw:
      return None
    return self.draw[np.random.default_rng((seed, step)).integers(len(self.draw))]

  def loss(self, params, batch, depth=None, key=None, probe_R=None):
    h = params['embedding']['weight'][batch['tokens']]
    if key is not None and self.dropout:
      key_B = sharding.row_keys(key, h.shape[0])
      keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.dropout, h.shape[1:]))(key_B)
      h = jnp.where(keep, h / (1 - self.dropout), 0)
    for _ in range(depth or 1):
      h = h + jnp.tanh(h @ params['core']['weight'].T + params['core']['bias'][None, None])
    logits = h @ params['head']['weight'].T + params['head']['bias'][None, None]
    counted = batch['targets'] >= 0
    picked = jnp.take_along_axis(
      jax.nn.log_softmax(logits), jnp.maximum(batch['targets'], 0)[..., None], axis=-1
    )[..., 0]
    number = jnp.sum(counted)
    loss = -jnp.sum(jnp.where(counted, picked, 0)) / jnp.maximum(number, 1)
    return loss, {'cross_entropy': loss, 'targets': number}


def fake_batch(seed, batch=8, length=6, vocab=16, uncounted=0):
  """Random tokens and targets; the last `uncounted` targets of the first rows do not count."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, vocab, (batch, length + 1), dtype=np.int32)
  inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
  if uncounted:
    targets[: batch // 2, -uncounted:] = -1
  return {'tokens': inputs, 'targets': targets}
