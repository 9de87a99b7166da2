"""What only an NVIDIA GPU can show: `make test-gpu`, a few minutes on one GPU of Ampere or newer.

Elsewhere every test is skipped and says why. Tolerances are those of bfloat16, with its 8 bits.
"""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from benchmarks import train as benchmark
from crt_jax import sharding
from crt_jax.decoding import loop as decoding
from crt_jax.decoding.prepare import empty_state, prepare
from crt_jax.decoding.sampling import Sampling, row_keys
from crt_jax.layers.attention import attend
from crt_jax.models import attention_choice
from crt_jax.runs import lock, train_state
from crt_jax.training import loop, optimizer, step
from tests.contract.models import params_of
from tests.layers import test_flash_attention as flash
from tests.training.tiny import rows_of, tiny_config


def reason_to_skip() -> str:
  """'' on an NVIDIA GPU."""
  asked = f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}'
  try:
    device = jax.devices()[0]
  except RuntimeError as error:
    return f'no GPU under {asked}: {" ".join(str(error).split())}'
  if attention_choice.is_nvidia(device):
    return ''
  return f'needs an NVIDIA GPU, and JAX found {device.platform} ({asked}); run `make test-gpu`'


REASON = reason_to_skip()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]

MODELS = dict(
  crt=dict(name='crt', heads=4, layers=2, depth=3, rotary='integer_reversed', width=280),
  crt_window=dict(
    name='crt', heads=4, layers=2, depth=2, rotary='integer', width=256, window=17, correction='sa'
  ),
  cart=dict(name='cart', head_width=64, prelude_layers=2, loops=3, width=256),
  transformer=dict(name='transformer', heads=4, layers=2, rotary='standard', width=272),
)
BATCH, LENGTH = 8, 128


def model_of(name, **changes):
  return crt_jax.build(MODELS[name] | dict(vocab_size=256, dtype='bfloat16') | changes)


def batch_of():
  tokens = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1), np.int32)
  return dict(tokens=tokens[:, :-1], targets=tokens[:, 1:])


def distance(one, two) -> float:
  """Norm of the difference of two trees over the norm of the second."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
  squares = [(np.sum((a - b) ** 2.0), np.sum(b**2.0)) for a, b in jax.device_get(list(pairs))]
  return float(np.sqrt(sum(d for d, _ in squares) / sum(s for _, s in squares)))


@pytest.mark.parametrize('window', (0, 1, 17))
@pytest.mark.parametrize('head_width', (48, 64, 68, 70, 84, 118, 128))
def test_cudnn_is_materialised_attention(head_width, window):
  """And its gradients, for head widths that are padded too."""
  generator = np.random.default_rng(0)
  shape = (2, LENGTH, 4, head_width)
  qkv = [jnp.asarray(generator.standard_normal(shape), 'bfloat16') for _ in range(3)]

  def with_gradients(kernel, *qkv):
    y, back = jax.vjp(lambda *x: attend(*x, None, window, None, kernel)[..., :head_width], *qkv)
    found = y, back(jnp.cos(y))
    return jax.tree.map(lambda a: a.astype('float32'), found)

  run = jax.jit(with_gradients, static_argnums=0)
  assert distance(run('cudnn', *qkv), run('xla', *qkv)) < 2e-2


@pytest.mark.parametrize('dtype, bound', [('bfloat16', 2e-2), ('float32', 1e-5)])
@pytest.mark.parametrize('window', (0, 17))
@pytest.mark.parametrize('head_width', (16, 64, 70, 118))
def test_triton_is_materialised_attention_with_the_same_mask(head_width, window, dtype, bound):
  """And its gradients."""
  if dtype == 'float32' and head_width > 64:
    pytest.skip('tiles of float32 do not fit the memory of a multiprocessor')
  *qkv, seed = flash.draw(LENGTH + 3, head_width, heads=4, groups=2, batch=2)
  qkv = [a.astype(dtype) for a in qkv]
  options = flash.Options(head_width**-0.5, window, 0.2)
  found = flash.with_gradients(flash.flash_attention.attention, options)(*qkv, seed)
  with jax.default_matmul_precision('highest'):
    wide = [a.astype('float32') for a in qkv]
    expected = flash.with_gradients(flash.materialised, options)(*wide, seed)
  assert distance(jax.tree.map(lambda a: a.astype('float32'), found), expected) < bound


def test_a_model_with_dropout_trains_through_triton():
  """And holds no square of scores."""
  model = model_of('crt', attention_kernel='triton', dropout=0.2)
  step = jax.jit(jax.value_and_grad(lambda p, b, key: model.loss(p, b, key=key)[0]))
  arguments = params_of(model), batch_of(), jax.random.key(0)
  compiled = step.lower(*arguments).compile()
  assert f'{LENGTH},{LENGTH}]' not in compiled.as_text()
  loss, gradient = compiled(*arguments)
  assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize('name', MODELS)
def test_a_model_trains_through_cudnn(name):
  """Loss and gradient, and no square of scores anywhere in the compiled program."""

  def compiled(kernel):
    model = model_of(name, attention_kernel=kernel)
    return jax.jit(jax.value_and_grad(lambda p, b: model.loss(p, b)[0])).lower(params, batch)

  batch, params = batch_of(), params_of(model_of(name))
  fused, plain = (compiled(kernel).compile() for kernel in ('cudnn', 'xla'))
  (loss, gradient), (expected, expected_gradient) = fused(params, batch), plain(params, batch)
  np.testing.assert_allclose(loss, expected, rtol=1e-2)
  assert distance(gradient, expected_gradient) < 5e-2
  text = fused.as_text()
  assert 'fmhaSoftmax' in text and 'fmhaScaleBias' not in text
  assert f'{LENGTH},{LENGTH}]' not in text and f'{LENGTH},{LENGTH}]' in plain.as_text()


def test_float32_is_as_exact_as_on_a_cpu():
  """With the precision of products set: by default a GPU computes float32 products in TF32."""
  model, batch = model_of('crt', dtype='float32'), batch_of()
  params = params_of(model)
  with jax.default_matmul_precision('highest'):
    on_gpu = jax.jit(model.loss)(params, batch)[0]
    with jax.enable_x64(True):
      wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), 'float64'), params)
      exact = jax.jit(model.loss)(wide, batch)[0]
  np.testing.assert_allclose(on_gpu, exact, rtol=1e-5)


@pytest.mark.parametrize('name', ('crt', 'transformer'))
def test_a_token_by_few_kernels_is_the_plain_one(name):
  """model.decode_kernel, which a CPU only interprets, with the cache filled beyond one block."""

  def logits_of(kernel):
    model, params = prepare(model_of(name, decode_kernel=kernel), weights)
    step, state = jax.jit(model.step), empty_state(model, params, 1, 96)
    for token in batch_of()['tokens'][0, :80]:
      state, logits_1xV = step(params, state, jnp.array([token]))
    return logits_1xV

  weights = params_of(model_of(name))
  assert distance(logits_of('pallas'), logits_of('xla')) < 5e-2


@pytest.mark.parametrize('remat', ('none', 'dots', 'layer'))
def test_the_whole_state_is_donated(remat):
  config = benchmark.config_of('crt_d5_c1120', smoke=True)
  config.model.update(remat=remat, dtype='bfloat16', attention_kernel='cudnn')
  mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  model = crt_jax.build(config.model)
  tx = optimizer.make_optimizer(config.optimizer, model, 1)
  abstract = train_state.abstract_state(model, tx, mesh)
  jitted = step.make_train_step(model, tx, lambda _: 0.1, config, abstract, mesh, 2)
  executable = jitted.lower(abstract, step.abstract_batch(config, mesh)).compile()
  state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  assert executable.memory_analysis().alias_size_in_bytes == state_bytes


@pytest.mark.parametrize('name', ('crt', 'cart', 'transformer'))
def test_a_chunk_of_tokens_asks_the_host_for_nothing(name):
  """Its loop has a known length, its caches are written in place, and nothing is sent out."""
  model, params = prepare(model_of(name), params_of(model_of(name)))
  empty = empty_state(model, params, 1, 128)
  logits_BxV = jnp.zeros((1, 256))
  decode = functools.partial(decoding.chunk_decoder('gpu').lower, model, Sampling(), 32)
  executable = decode(params, row_keys(0, jnp.arange(1)), empty, logits_BxV).compile()
  text = executable.as_text()
  assert '"known_trip_count":{"n":"32"}' in text.replace(' ', '')
  assert not any(word in text for word in ('infeed', 'outfeed', 'send(', 'recv('))
  donated = sum(a.nbytes for a in jax.tree.leaves(empty.caches))
  assert executable.memory_analysis().alias_size_in_bytes >= donated


def test_a_run_on_the_gpu(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('CRT_JAX_CACHE', str(tmp_path / 'cache'))
  changes = {'model.dropout': 0.0, 'model.dtype': 'bfloat16'}
  with lock.released():
    loop.train(tiny_config(**changes), tmp_path / 'run')
  assert 'cudnn, heads of 8' in capsys.readouterr().out
  rows = rows_of(tmp_path / 'run')
  assert rows[-1]['loss'] < rows[0]['loss']


def test_the_benchmark_at_toy_size():
  config = benchmark.config_of('cart_d1024', smoke=True)
  config.model.dtype = 'bfloat16'
  config.mesh.data = 1
  devices = jax.devices()[:1]
  found = benchmark.measure(config, 2, 2, profile=True, smoke=True, devices=devices)
  print(json.dumps(found, indent=2))
  assert found['attention'].startswith('cudnn') and found['memory_bytes']['device_peak'] > 0
  assert 'attention: fused kernel' in found['share_of_time']
