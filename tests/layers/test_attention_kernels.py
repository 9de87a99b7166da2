"""Fused attention equals materialised attention: padded heads, windows, every model; and what the
kernels are told when they are lowered for hardware that is not here."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import crt_jax
from crt_jax import sharding
from crt_jax.layers import attention_kernels as kernels
from crt_jax.layers.attention import Attention, attend
from crt_jax.layers.latent_attention import KeysValues, LatentAttention
from crt_jax.layers.parameters import init_params
from tests.close import FEW_PRODUCTS, assert_close
from tests.contract.models import model_of, params_of, tokens_of

BATCH, LENGTH = 2, 6
AS_XLA = functools.partial(kernels.dot_product, implementation='xla')
INTERPRETED = functools.partial(kernels.splash_attention, interpret=True)


def draw(head_width, heads=2, groups=2, length=LENGTH, batch=BATCH, dtype='float32'):
  generator = np.random.default_rng(0)
  shapes = ((batch, length, count, head_width) for count in (heads, groups, groups))
  return tuple(jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes)


def materialised(q, k, v, window):
  return attend(q, k, v, None, window, None, 'xla')


def cut(run, q, k, v, window):
  """Attention by `run` over padded heads, without the zeros that it leaves behind."""
  mixed = kernels.with_padded_heads(run, q, k, v, window)
  return mixed[..., : q.shape[-1]]


def with_gradients(function):
  """A function's value and its gradients by q, k and v."""

  def both(*qkv):
    y, back = jax.vjp(function, *qkv)
    return y, back(jnp.cos(y))

  return jax.jit(both)


@pytest.mark.parametrize(
  'head_width, window, groups', [(70, 0, 2), (68, 3, 2), (84, 1, 1), (118, 9, 2), (8, 2, 2)]
)
def test_padded_heads_are_those_of_the_true_width(head_width, window, groups):
  """Through jax.nn.dot_product_attention, which cuDNN's call shares but for its implementation."""
  qkv = draw(head_width, groups=groups)
  padded = with_gradients(lambda *x: cut(AS_XLA, *x, window))
  expected = with_gradients(lambda *x: materialised(*x, window))
  assert_close(padded(*qkv), expected(*qkv), FEW_PRODUCTS)


@pytest.mark.parametrize('rows', (1, 2, 3))
@pytest.mark.parametrize('kv', (None, KeysValues(12, 2, 6)))
def test_a_layer_with_padded_heads_is_the_same(kv, rows, monkeypatch):
  """The zeros behind heads of 6 meet zeros of the output weight; gradients by weights and input."""
  monkeypatch.setattr(kernels, 'splash_attention', AS_XLA)
  x_BxTxC = jnp.asarray(np.random.default_rng(rows).standard_normal((rows, 5, 12)), 'float32')

  def derived(kernel):
    fields = dict(width=12, heads=2, head_width=6, kernel=kernel)
    layer = LatentAttention(kv=kv, **fields) if kv else Attention(rotary='integer', **fields)
    params = init_params(layer, jax.random.key(0), x_BxTxC)

    def total(params, x_BxTxC):
      return jnp.sum(jnp.sin(layer.apply({'params': params}, x_BxTxC)[0]))

    return jax.jit(jax.value_and_grad(total, (0, 1)))(params, x_BxTxC)

  assert_close(derived('splash'), derived('xla'), FEW_PRODUCTS)


def test_the_scale_is_that_of_the_true_width():
  q, k, v = draw(70)
  wrong = AS_XLA(*(jnp.pad(a, [(0, 0)] * 3 + [(0, 2)]) for a in (q, k, v)), 72**-0.5, 0)[..., :70]
  assert np.abs(wrong - materialised(q, k, v, 0)).max() > 1e-3


# ---- cuDNN, lowered without a GPU --------------------------------------------------------------


@pytest.fixture
def as_on_a_gpu(monkeypatch):
  """cuDNN's call can then be lowered, though not run."""
  monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 91_100)
  monkeypatch.setattr(fused_attention_stablehlo, 'check_compute_capability', lambda _: True)


def cudnn_calls(head_width, window, groups):
  """(name, number of operands, configuration) of every cuDNN call of a training step."""
  qkv = draw(head_width, groups=groups, dtype='bfloat16')
  function = with_gradients(lambda *x: kernels.fused_attention('cudnn', *x, window))
  text = function.trace(*qkv).lower(lowering_platforms=('cuda',)).as_text()
  calls = re.findall(r'custom_call @(__cudnn\S*?)\((.*?)\).*?backend_config = "(.*?)"[,}]', text)
  return [
    (
      name,
      operands.count('%'),
      json.loads(re.sub(r'\\22', '"', config))['cudnn_fmha_backend_config'],
    )
    for name, operands, config in calls
  ]


@pytest.mark.parametrize('window, groups', [(0, 2), (3, 2), (0, 1)])
def test_cudnn_is_told_of_causality_and_given_no_mask(as_on_a_gpu, window, groups):
  calls = cudnn_calls(70, window, groups)
  assert [name for name, *_ in calls] == ['__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward']
  # q, k, v; and in the backward call the statistics, the output and its gradient: no bias.
  assert [operands for _, operands, _ in calls] == [3, 6]
  for _, _, config in calls:
    assert config['mask_type'] == 'CAUSAL' and config['is_flash_attention']
    assert config['sliding_window_length'] == window
    assert config['dropout_rate'] == 0
    assert math.isclose(config['fmha_scale'], 70**-0.5)


# ---- splash, interpreted on a CPU and lowered for a TPU ------------------------------------------


@pytest.mark.slow  # Pallas interprets a kernel at 1 000 times the cost
@pytest.mark.parametrize('head_width, window, groups', [(70, 0, 2), (8, 5, 1), (16, 1, 2)])
def test_splash_and_its_gradients(head_width, window, groups):
  qkv = draw(head_width, groups=groups, length=130, batch=1)  # padded to two tiles of 128
  splash = with_gradients(lambda *x: cut(INTERPRETED, *x, window))
  expected = with_gradients(lambda *x: materialised(*x, window))
  assert_close(splash(*qkv), expected(*qkv), FEW_PRODUCTS)


@pytest.mark.parametrize('window', (0, 3))
def test_splash_forward(window):
  qkv = draw(10, batch=1)
  splash = jax.jit(lambda *x: cut(INTERPRETED, *x, window))
  assert_close(splash(*qkv), materialised(*qkv, window), FEW_PRODUCTS)


@pytest.mark.parametrize('shape', [dict(data=4, fsdp=2, tensor=1), dict(data=2, fsdp=2, tensor=2)])
@pytest.mark.parametrize(
  'kernel, platform, call',
  [
    ('splash', 'tpu', 'tpu_custom_call'),
    ('cudnn', 'cuda', '__cudnn$fmhaSoftmax'),
    ('triton', 'cuda', '__gpu$xla.gpu.triton'),
  ],
)
def test_kernels_lower_where_each_device_has_its_own_rows(
  as_on_a_gpu, kernel, platform, call, shape
):
  """The compiler refuses a kernel that it would have to split."""
  mesh = sharding.make_mesh(shape)

  def gradient(weight, batch, key):
    q = batch['q'] * weight
    mixed = kernels.fused_attention(kernel, q, q, q, 0)
    return weight + jnp.sum(mixed.astype(jnp.float32)), {'targets': jnp.ones(())}

  def step(weight, q):
    with sharding.in_mesh(mesh):
      return sharding.on_own_rows(gradient, jax.sharding.PartitionSpec())(weight, {'q': q}, 0)

  q = jnp.zeros((8, 128, 2, 64), jnp.bfloat16)
  traced = jax.jit(step).trace(jnp.ones((), jnp.bfloat16), q)
  assert call in traced.lower(lowering_platforms=(platform,)).as_text()


def test_splash_is_split_over_rows_and_heads():
  """Eight devices of a mesh: each runs the kernel on its own rows and heads, and nothing moves."""
  qkv = draw(8, heads=2, batch=4)
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  place = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(sharding.BATCH_AXES, None, 'tensor')
  )

  def split(*qkv):
    with sharding.in_mesh(mesh):
      return kernels.with_padded_heads(INTERPRETED, *qkv, 3)

  compiled = jax.jit(split, in_shardings=(place,) * 3).lower(*qkv).compile()
  assert not re.search('all-gather|all-reduce|all-to-all|permute', compiled.as_text())
  found = compiled(*(jax.device_put(a, place) for a in qkv))
  assert found.sharding.shard_shape(found.shape) == (1, LENGTH, 1, 8)
  assert_close(found, materialised(*qkv, 3), FEW_PRODUCTS)


@pytest.mark.parametrize('name', ('crt', 'cart'))
def test_a_training_step_lowers_for_a_tpu(name):
  """With the kernel of the forward pass and the two of the backward pass."""
  model = model_of(name, attention_kernel='splash', dtype='bfloat16')
  params = jax.eval_shape(model.init, jax.random.key(0))
  traced = jax.jit(jax.grad(model.loss, has_aux=True)).trace(params, batch_of(model))
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  found = set(re.findall(r'kernel_name = "splash_mha_(\w+?)_', text))
  assert found == {'fwd', 'dq', 'dkv'}, re.findall('kernel_name = "(.*?)"', text)


# ---- in the models -----------------------------------------------------------------------------

# How often each traces attention: every scan once, what stands before and behind it apart.
MODELS = dict(crt=2, crt_sa=5, crt_windowed=2, cart=3, cart_per_loop=3, roformer=1, cart_dense=1)
MODELS |= dict(llama=1, crt_gpt2=2)


@pytest.fixture
def calls(monkeypatch):
  """The shapes of q, k and v of every call of the kernel, which here is XLA's own."""
  found = []

  def counted(q, k, v, scale, window):
    found.append((q.shape, k.shape, v.shape))
    return AS_XLA(q, k, v, scale, window)

  monkeypatch.setattr(kernels, 'splash_attention', counted)
  return found


def batch_of(model):
  tokens = tokens_of(model)
  return dict(tokens=tokens, targets=tokens)


@pytest.mark.parametrize('name', MODELS)
def test_a_model_attends_through_the_kernel_everywhere(name, calls):
  """Self-, latent and cross-attention."""
  model = model_of(name, attention_kernel='splash')
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert not calls  # parameters are made where the kernel cannot run
  jax.eval_shape(model.loss, params, batch_of(model))
  assert len(calls) == MODELS[name]


@pytest.mark.parametrize('name', ('cart', 'crt_sa', 'llama'))
def test_a_model_says_the_same_through_the_kernel(name, calls):
  plain, fused = model_of(name), model_of(name, attention_kernel='splash')
  params = params_of(plain)
  one, two = (jax.jit(model.loss)(params, batch_of(model))[0] for model in (plain, fused))
  np.testing.assert_allclose(one, two, rtol=1e-5)
  assert calls


def test_dropout_materialises_the_scores(monkeypatch):
  monkeypatch.setattr(kernels, 'splash_attention', None)  # calling it would fail
  model = model_of('crt', attention_kernel='splash', dropout=0.5)
  jax.eval_shape(model.loss, params_of(model), batch_of(model), key=jax.random.key(0))


def test_decoding_reads_its_cache_without_the_kernel(monkeypatch):
  monkeypatch.setattr(kernels, 'splash_attention', None)
  model = model_of('cart', attention_kernel='splash')
  jax.eval_shape(model.step, params_of(model), model.decode_state(1, 4), tokens_of(model)[:1, 0])


def test_dots_keep_what_cudnn_returns(as_on_a_gpu):
  """Remat 'dots' computes the kernel once a layer and pass, 'layer' again in the backward pass."""

  def forward_calls(remat):
    fields = dict(name='crt', vocab_size=64, width=64, heads=4, layers=2, depth=3)
    fields |= dict(rotary='integer', dtype='bfloat16', attention_kernel='cudnn', remat=remat)
    model = crt_jax.build(fields)
    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    gradient = jax.jit(jax.grad(model.loss, has_aux=True))
    traced = gradient.trace(params, dict(tokens=rows, targets=rows))
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
    return len(re.findall(r'custom_call @__cudnn\$fmhaSoftmax\(', text))

  assert forward_calls('dots') == forward_calls('none') < forward_calls('layer')
