"""Decoding by few kernels, interpreted on a CPU: the same as the plain step, to round-off."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.decoding import Sampling, generate, prepare
from crt_jax.decoding.prepare import empty_state
from crt_jax.decoding.sampling import NOT_FINITE, draw, sample
from crt_jax.layers import row_kernels
from crt_jax.models import decode_kernel
from tests.contract.models import model_of, params_of, tokens_of


def plain_and_short(name, **changes):
  """A model, the same by kernels, and prepared parameters of both."""
  model = model_of(name, **changes)
  plain, params = prepare(model, params_of(model))
  fields = dataclasses.replace(plain.config, decode_kernel='interpreted')
  return plain, dataclasses.replace(plain, config=fields), params


@pytest.mark.parametrize(
  'name, changes',
  [
    ('crt_windowed', dict(width=24, correction='concat')),  # no powers of two
    ('roformer_head_ffn', {}),
    ('cart_dense', {}),
    ('gpt2', {}),
  ],
)
def test_steps_equal_the_plain_ones(name, changes):
  plain, short, params = plain_and_short(name, **changes)
  tokens_1xT = tokens_of(plain, batch=1, length=5)

  def logits_of(model):
    """Of all steps; the last has no room."""
    step, state, found = jax.jit(model.step), empty_state(model, params, 1, 4), []
    for token_1 in tokens_1xT.T[:, None]:
      state, logits_1xV = step(params, state, token_1[0])
      found.append(logits_1xV)
    return np.concatenate(found)

  expected, found = logits_of(plain), logits_of(short)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert np.isnan(found[4]).all() and np.isfinite(found[:4]).all()


def test_a_text_is_the_same_behind_a_prompt_that_is_read_by_the_kernels():
  plain, short, params = plain_and_short('crt')
  arguments = params, [[3, 5, 7]], 6
  options = dict(context=12, chunk=4)
  expected, found = (generate(m, *arguments, **options) for m in (plain, short))
  assert found == expected and len(found[0]) == 6


def test_two_rows_are_refused_and_a_step_of_two_takes_the_plain_way():
  plain, short, params = plain_and_short('crt')
  with pytest.raises(
    ValueError, match='decodes one text at a time, and there are 2; use model.dec'
  ):
    generate(short, params, [[1], [2]], 1, context=4)
  tokens_2 = jnp.array([1, 2])
  _, expected = plain.step(params, empty_state(plain, params, 2, 4), tokens_2)
  _, found = short.step(params, empty_state(short, params, 2, 4), tokens_2)
  np.testing.assert_array_equal(found, expected)


def test_a_weight_larger_than_a_tile_and_all_that_stands_around_it():
  """With blocks of several rows, a last block that is not full, several tiles of columns."""
  generator = np.random.default_rng(0)
  x, bias, onto = (generator.standard_normal(n).astype('float32') for n in (300, 1100, 1100))
  weight = (generator.standard_normal((1100, 300)) / 17).astype('float32')
  row_kernels_tile, row_kernels.TILE = row_kernels.TILE, 256
  try:
    found = row_kernels.product(
      x, weight[None], bias[None], activation='gelu', onto_O=onto, interpret=True
    )
  finally:
    row_kernels.TILE = row_kernels_tile
  expected = jax.nn.gelu(weight @ x + bias, approximate=False) + onto
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_token_is_drawn_as_by_sample():
  generator = np.random.default_rng(0)
  logits_1xV = 3 * generator.standard_normal((1, 300)).astype('float32')
  noise_NxB = np.linspace(0, 1, 8, endpoint=False, dtype='float32')[:, None]
  rule, tokens_NxB = Sampling(0.7, vocab_size=290), jnp.zeros((8, 1), jnp.int32)

  @jax.jit
  def drawn(logits_1xV, index):
    return draw(rule, logits_1xV, noise_NxB, index, tokens_NxB, 'interpreted')

  for index, noise_B in enumerate(noise_NxB):
    token_1, found_NxB = drawn(logits_1xV, index)
    assert token_1[0] == found_NxB[index, 0] == sample(rule, jnp.array(logits_1xV), noise_B)[0]
  logits_1xV[0, 200] = np.nan
  assert drawn(logits_1xV, 0)[1][0, 0] == NOT_FINITE


@pytest.mark.parametrize(
  'name, changes, message',
  [
    ('crt', dict(dtype='float64'), "takes no model.dtype='float64'"),
    ('cart', {}, "knows no layers of a 'cart' of this kind"),
    ('crt_cart', {}, "knows no layers of a 'crt' of this kind"),
    ('cart_dense_latent', {}, 'knows no model.latent_ratio'),
    ('crt_llama', {}, r'knows no groups of heads \(model.kv_heads=2\)'),
    ('llama', dict(kv_heads=0), 'knows no model.qk_norm'),
  ],
)
def test_layers_that_the_kernels_do_not_know_are_refused(name, changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    decode_kernel.check(
      dataclasses.replace(model_of(name).config, decode_kernel='pallas', **changes)
    )
  assert str(caught.value).endswith("; use model.decode_kernel='xla'")


def test_a_device_that_cannot_run_them_is_refused():
  config = model_of('crt', decode_kernel='pallas').config
  with pytest.raises(ValueError, match='needs an NVIDIA GPU, and this is cpu'):
    decode_kernel.check_texts(config, 1, dict(layers=(jnp.zeros(1),)))
  decode_kernel.check_texts(config, 2, dict(layers={}))  # which the plain step reads
  h100 = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H100 80GB HBM3')

  def on(count):
    placed = types.SimpleNamespace(device_set=[h100] * count)
    return dict(layers=(types.SimpleNamespace(sharding=placed),))

  decode_kernel.check_texts(config, 1, on(1))
  with pytest.raises(ValueError, match='runs on one device, and there are 2'):
    decode_kernel.check_texts(config, 1, on(2))
