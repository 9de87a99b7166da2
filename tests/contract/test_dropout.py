"""Where one training forward drops out units (docs/crt.md 2 and 3, docs/cart.md 2), and that every
mask is its own: of each layer, pass, loop, position, site and row."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax import sharding
from crt_jax.layers import attention
from crt_jax.layers.feed_forward import FeedForward
from crt_jax.layers.linear import Dropout
from tests.contract.models import CONFIGS, LENGTH, model_of, params_of, tokens_of

RATE = 0.3
ROWS = 3
# Masks of fewer units, as of single positions, may agree by chance: there only keys are compared.
UNITS = 64


def per_layer(times: int) -> dict:
  """What `times` runs of a transformer layer drop."""
  return dict.fromkeys(('weights', 'attention', 'feed_forward'), times)


# What is counted, by hand: the runs of a layer, K passes times D layers or P + R + 1 of a CART; in
# a CRT the embedding, once, and the correction, which besides makes the first input of every
# stretch (unused at the start of a sequence). A module outside of the layers is 'own'.
CASES = {
  'crt': (dict(), dict(embedding=1, own_feed_forward=3 + 1) | per_layer(3 * 2)),
  'crt_sa': (
    dict(),
    dict(embedding=1, own_weights=4, own_attention=4, own_feed_forward=4) | per_layer(3),
  ),
  'crt_windowed': (dict(layers=1), dict(embedding=1, own_feed_forward=4) | per_layer(3)),
  'crt_concat': (
    dict(layers=1, correction='concat'),
    dict(embedding=1, own_feed_forward=4) | per_layer(3),
  ),
  'crt_token_blind': (
    dict(layers=1, correction='token_blind'),
    dict(embedding=1, own_feed_forward=3) | per_layer(3),
  ),
  'crt_tied_pure': (
    dict(layers=1, correction='tied_pure'),
    dict(embedding=1, own_feed_forward=4) | per_layer(3),
  ),
  'crt_cart': (
    dict(),
    dict(embedding=1, own_feed_forward=3 + 1) | per_layer(3 * (2 + 2 + 1)),
  ),
  'crt_chunked': (
    dict(driver='chunked', chunk=4, depth=2),
    dict(embedding=1, own_feed_forward=2 * (2 + 1)) | per_layer(2 * 2 * 2),
  ),
  'crt_sequential': (
    dict(driver='sequential'),
    dict(embedding=1, own_feed_forward=LENGTH * 2) | per_layer(LENGTH * 2),
  ),
  'cart': (dict(), per_layer(2 + 3 + 1)),
  'cart_per_loop': (dict(), per_layer(2 + 3 + 1)),
  'cart_self_unshared': (dict(), per_layer(2 + 3 + 1)),
  'roformer': (dict(), per_layer(2)),
  'roformer_head_ffn': (dict(), dict(own_feed_forward=1) | per_layer(2)),
  'cart_dense': (dict(), per_layer(2)),
}
FAST = ('crt', 'crt_sa', 'crt_cart', 'crt_sequential', 'cart', 'roformer')
each_case = pytest.mark.parametrize(
  'name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)


@functools.cache
def forward(name: str, rows: int = ROWS):
  """The masks of one training forward and the keys they are drawn from, in the order of drawing.

  Returns: a list of (site, mask [B, ...] of factors), and a list of key data [B, ...].
  """
  changes, _ = CASES[name]
  model = model_of(name if name in CONFIGS else 'crt', **changes, dropout=RATE)
  params, tokens = params_of(model), tokens_of(model, batch=rows)
  masks, keys = [], []
  row_keys = sharding.row_keys

  def keep(found, note, value):
    jax.debug.callback(lambda value: found.append(note(np.asarray(value))), value, ordered=True)

  def noted_keys(key, count):
    key_B = row_keys(key, count)
    keep(keys, lambda data: data, jax.random.key_data(key_B))
    return key_B

  def noted_masks(dropout, args, kwargs, context):
    if not isinstance(context.module, Dropout):
      return dropout(*args, **kwargs)
    (x,), site = args, site_of(context.module, *args)
    factor = dropout(jnp.ones_like(x))
    keep(masks, lambda mask: (site, mask), factor)
    return x * factor

  with nn.intercept_methods(noted_masks), pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'row_keys', noted_keys)
    batch = dict(tokens=tokens, targets=tokens)
    jax.jit(lambda key: model.loss(params, batch, key=key)[0])(jax.random.key(5))
    jax.effects_barrier()
  return masks, keys


def site_of(module: Dropout, x) -> str:
  """The module that drops x, 'own_' before it where that stands in no layer."""
  if not module.path:
    return 'embedding'
  kind = 'feed_forward' if isinstance(module.parent, FeedForward) else 'attention'
  return ('' if len(module.path) > 1 else 'own_') + ('weights' if x.ndim == 4 else kind)


@each_case
def test_every_site_drops_out_once_in_each_layer_pass_and_loop(name):
  masks, _ = forward(name)
  assert collections.Counter(site for site, _ in masks) == CASES[name][1]


@each_case
def test_no_mask_and_no_key_is_used_twice(name):
  masks, keys = forward(name)
  assert len(keys) == len(masks)
  assert len({key.tobytes() for key_B in keys for key in key_B}) == ROWS * len(masks)
  # Of one key the masks of two shapes begin alike.
  beginnings = [
    (mask[row].ravel()[:UNITS] > 0).tobytes()
    for _, mask in masks
    for row in range(ROWS)
    if mask[row].size >= UNITS
  ]
  assert len(set(beginnings)) == len(beginnings)
  assert beginnings


@each_case
def test_no_mask_repeats_itself_along_an_axis(name):
  """As one mask for all heads or all positions would."""
  for site, mask in forward(name)[0]:
    for axis in range(1, mask.ndim):
      if mask.shape[axis] > 1 and mask[0].size >= UNITS:
        assert np.ptp(mask, axis=axis).any(axis=tuple(range(1, mask.ndim - 1))).all(), (site, axis)


@each_case
def test_the_mean_stays_by_the_scale_of_the_survivors(name):
  masks, _ = forward(name)
  for site, mask in masks:
    assert set(np.unique(mask)) <= {0, np.float32(1 / (1 - RATE))}, site
  for site in {site for site, _ in masks}:
    kept = np.concatenate([mask.ravel() > 0 for at, mask in masks if at == site])
    # Five standard deviations of a mean of so many draws.
    assert abs(kept.mean() - (1 - RATE)) < 5 * (RATE * (1 - RATE) / kept.size) ** 0.5, site


@pytest.mark.parametrize('name', ('crt', pytest.param('cart', marks=pytest.mark.slow)))
def test_a_row_is_dropped_alike_whatever_stands_beside_it(name):
  three, _ = forward(name)
  for rows in (1, 2):
    for (site, mask), (_, among_three) in zip(forward(name, rows)[0], three, strict=True):
      np.testing.assert_array_equal(mask, among_three[:rows], err_msg=site)


def test_blocks_of_attention_draw_masks_of_their_own(monkeypatch):
  monkeypatch.setattr(attention, 'BLOCK', 2)
  monkeypatch.setattr(attention, 'BLOCKS', 3)
  masks, keys = forward.__wrapped__('roformer')
  assert sum(site == 'weights' for site, _ in masks) == 2 * 3
  assert len({key.tobytes() for key_B in keys for key in key_B}) == ROWS * len(masks)


def test_dropout_of_many_units():
  """A share of the rate goes, to the digit that a million draws decide."""
  x = jnp.full((4, 512, 512), 3.0)
  y = np.asarray(Dropout(RATE).apply({}, x, rngs={'dropout': jax.random.key(0)}))
  assert set(np.unique(y)) == {0, np.float32(3) / np.float32(1 - RATE)}
  assert abs((y == 0).mean() - RATE) < 5 * (RATE * (1 - RATE) / y.size) ** 0.5
  np.testing.assert_array_equal(Dropout(RATE).apply({}, x), x)
