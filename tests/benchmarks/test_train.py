"""The training benchmark at toy size: every field is there, and unknown hardware gives 0."""

import json
import math
import re
import types

import jax
import jax.numpy as jnp
import pytest

import crt_jax
from benchmarks import profile_parts, train
from crt_jax import accounting
from crt_jax.keys import random_key


def test_a_toy_is_measured():
  config = train.config_of('crt_d5_c1120', smoke=True)
  assert (config.model.depth, config.model.depth_min, config.model.dropout) == (5, 0, 0.0)
  config.model.update(depth=2, layers=1, remat='none')
  config.mesh.data = 1
  devices = train.jax.devices()[:1]
  how = dict(profile=True, smoke=True, devices=devices, fixed=('model.remat',))
  found = train.measure(config, steps=1, groups=2, **how)
  json.dumps(found)
  tokens = found['batch_size'] * found['sequence_length']
  assert math.isclose(found['tokens_per_second'] * found['seconds_per_step'], tokens)
  assert found['remat'] == 'none' and found['accumulation'] == 1  # as it was fixed, and what fits
  expected = accounting.model_flops(config.model, found['sequence_length'], 2)
  assert found['model_flops_per_token'] == found['hardware_flops_per_token'] == expected
  # A CPU has no peak here: no guess.
  assert found['model_flops_utilisation'] == found['hardware_flops_utilisation'] == 0
  assert 0 < found['share_of_matrix_product'] < 1
  memory = found['memory_bytes']
  assert memory['compiled'] > memory['donated'] > 3 * 4 * found['parameters']  # and two moments
  assert found['attention'] == 'xla, scores materialised'
  assert math.isclose(sum(found['share_of_time'].values()), 1, abs_tol=0.02)
  assert found['share_of_time']['gradient norm, clipping, optimizer'] > 0


def test_changes_of_the_config():
  words = ['model.remat=none', 'model.depth=3', 'model.dropout=0.5']
  fixed = train.parse_changes(words, train.CASES['crt_d5_c1120'][0])
  assert fixed == {'model.remat': 'none', 'model.depth': 3, 'model.dropout': 0.5}
  config = train.config_of('crt_d5_c1120', fixed=fixed)
  assert (config.model.remat, config.model.depth, config.model.dropout) == ('none', 3, 0.5)


@pytest.mark.parametrize(
  'change, message',
  [
    ('model.remat', '--change=model.remat has no value; write FIELD=VALUE'),
    ('model.rmat=none', 'has no field model.rmat; did you mean model.remat'),
    ('model.depth=deep', '--change=model.depth=deep must be of type int'),
    ('model.depth=True', '--change=model.depth=True must be of type int'),
  ],
)
def test_a_change_that_cannot_be(change, message):
  with pytest.raises(train.cli.Mistake, match=message):
    train.parse_changes([change], train.CASES['crt_d5_c1120'][0])


def test_what_does_not_fit_is_tried_otherwise(monkeypatch):
  """More is recomputed, in smaller slices, until the step fits; other failures are not hidden."""
  tried, message = [], 'RESOURCE_EXHAUSTED: 3 GiB'

  def run(config, *_):
    tried.append((config.model.remat, config.train.accumulation))
    if len(tried) < 5:
      raise train.jax.errors.JaxRuntimeError(message)
    return 'fits'

  monkeypatch.setattr(train, 'run', run)
  config, mesh = train.config_of('crt_d5_c1120'), types.SimpleNamespace(size=1)
  assert train.first_that_fits(config, mesh, 1, 1, False) == 'fits'
  assert tried == [('auto', 1), ('auto', 2), ('auto', 4), ('layer', 1), ('layer', 2)]
  message = 'INTERNAL'
  tried.clear()
  with pytest.raises(train.jax.errors.JaxRuntimeError):
    train.first_that_fits(config, mesh, 1, 1, False)


@pytest.mark.parametrize('case', train.CASES)
def test_the_paper_sizes(case):
  """What is measured is the paper's model, not a toy of it."""
  config = train.config_of(case)
  millions = accounting.parameters(config.model).stored / 1e6
  sizes = dict(cart_d1024=125.1, dense_12l_d1024=186.9, crt_d5_c1120=157.1, transformer_n12=134.2)
  case, _, dropped = case.partition('-')
  assert round(millions, 1) == sizes[case]
  assert config.model.dtype == 'bfloat16' and config.model.dropout == (0.2 if dropped else 0)
  assert config.model.attention_kernel == ('triton' if dropped else 'auto')


def test_a_model_that_fails_leaves_its_reason_and_the_others(monkeypatch):
  done = types.SimpleNamespace(returncode=1, stderr='Traceback ...\nRESOURCE_EXHAUSTED: 3 GiB\n')
  monkeypatch.setattr(train.subprocess, 'run', lambda *_, **__: done)
  assert train.in_own_process('cart_d1024') == dict(failed='RESOURCE_EXHAUSTED: 3 GiB')


def test_products_outside_the_layers_have_a_name():
  """A CART's tied output layer is no module; what stands in no part would count as traffic."""
  config = train.config_of('cart_d1024', smoke=True)
  model, tokens = crt_jax.build(config.model), jax.ShapeDtypeStruct((4, 16), jnp.int32)
  gradient = jax.jit(jax.grad(model.loss, has_aux=True))
  params = jax.eval_shape(model.init, random_key(0))
  text = gradient.lower(params, dict(tokens=tokens, targets=tokens)).as_text(debug_info=True)
  parts = {profile_parts.part_of('', name) for name in re.findall(r'"(jit\([^"]*)"', text)}
  assert {'output layer: matrix products', 'output layer and loss: softmax'} <= parts
  assert {'core loops: blend, code and gate', 'embedding'} <= parts
  products = re.findall(r'"(jit\([^"]*dot_general)"', text)
  # The projected loop codes, [R, code], belong to no part.
  unnamed = {name for name in products if profile_parts.part_of('', name) == 'the rest'}
  assert all('Linear' in name for name in unnamed), unnamed


def test_parts_of_a_gpu_trace():
  """Its events are kernels, which name the operation in their arguments."""
  text = """
    %fusion.1 = f32[2] fusion(), metadata={op_name="jit(step)/checkpoint/attention/qkv/dot_general"}
    %custom-call.2 = f32[2] custom-call(), metadata={op_name="jit(step)/attention/__cudnn$fmha"}
  """
  lane = dict(ph='X', pid=1, tid=1)
  events = [
    dict(lane, name='cutlass_80', ts=0, dur=3000, args=dict(hlo_op='fusion.1')),
    dict(lane, name='cudnn_flash', ts=3000, dur=1000, args=dict(hlo_op='custom-call.2')),
    dict(lane, name='of the host', ts=0, dur=9000),
  ]
  assert profile_parts.shares(events, text) == {
    'attention: query, key, value and output projections': 0.75,
    'attention: fused kernel': 0.25,
  }
