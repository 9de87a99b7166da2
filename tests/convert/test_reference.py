"""The published implementations' arrays (tests/fixtures), reproduced to float32 round-off."""

import functools
import pathlib

import jax
import numpy as np
import optax
import pytest

import crt_jax
from configs import base
from crt_jax import schema
from crt_jax.convert.reference import export_arrays, import_params
from crt_jax.models.corrections import VARIANTS
from crt_jax.training.optimizer import make_optimizer
from tests import close
from tests.contract.models import params_of
from tests.models import numpy_reference

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
_SMALL = dict(vocab_size=37, width=32, heads=4, rotary='integer_reversed')
CRT = {f'crt_d{d}': dict(_SMALL, name='crt', layers=d, convergence_weight=0.1) for d in (1, 2)}
ROFORMER = dict(_SMALL, name='transformer', layers=3)
POINTER_CHASING = dict(
  _SMALL, name='crt', layers=1, vocab_size=17, rotary='integer', driver='sequential'
)
CART = dict(name='cart', vocab_size=61, width=128, prelude_layers=2, loops=4)
CART_VARIANTS = dict(
  base={},
  unfreeze_kv=dict(anchor='per_loop'),
  no_hyper=dict(blend=False),
  no_lti=dict(gate=False),
  no_lie=dict(loop_code=False),
  R1=dict(loops=1),
  R9=dict(loops=9),
)
CART_DENSE = dict(name='transformer', style='cart_dense', vocab_size=61, width=128, layers=2)


@pytest.fixture(autouse=True)
def precise_products():
  with jax.default_matmul_precision('highest'):
    yield


def load(name, config):
  arrays = np.load(FIXTURES / f'{name}.npz')
  weights = {key[6:]: arrays[key] for key in arrays.files if key.startswith('param/')}
  batch = dict(tokens=arrays['idx'], targets=arrays['tgt'])
  return crt_jax.build(config), import_params(config, weights), batch, arrays


# What float32 of two frameworks leaves free (crt.md 16).
assert_close = functools.partial(close.assert_close, tolerance=1e-5)


def gradients(model, config, params, batch):
  (_, metrics), grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, batch)
  return metrics, export_arrays(config, grad), grad


@pytest.mark.parametrize('name', CRT)
def test_crt_logits(name):
  model, params, batch, arrays = load(name, CRT[name])
  apply = jax.jit(model.apply, static_argnames='depth')
  for depth in (1, 2, 3, 5, 10, 13) if name == 'crt_d1' else (1, 5, 13):
    logits = apply(params, batch['tokens'], depth=depth).logits_BxTxV
    assert_close(logits, arrays[f'logits_K{depth}'])
  assert_close(model.sequential(params, batch['tokens']), arrays['logits_seq'])


@pytest.mark.parametrize('name', CRT)
def test_crt_losses_gradients_and_step(name):
  model, params, batch, arrays = load(name, CRT[name])
  metrics, grad, tree = gradients(model, CRT[name], params, batch)
  assert_close(metrics['cross_entropy'], arrays['loss_ce_K5'])
  assert_close(
    sum(metrics[k] for k in ('cross_entropy', 'convergence')), arrays['loss_total_K5_cw0.1']
  )
  check_gradients_and_step(CRT[name], params, grad, tree, arrays)


def test_roformer():
  model, params, batch, arrays = load('roformer_n3', ROFORMER)
  assert_close(model.apply(params, batch['tokens']).logits_BxTxV, arrays['logits'])
  _, grad, tree = gradients(model, ROFORMER, params, batch)
  check_gradients_and_step(ROFORMER, params, grad, tree, arrays)


def test_pointer_chasing_bptt():
  model, params, batch, arrays = load('pc_bptt_full', POINTER_CHASING)
  assert_close(model.sequential(params, batch['tokens']), arrays['logits'])
  metrics, grad, tree = gradients(model, POINTER_CHASING, params, batch)
  assert_close(metrics['cross_entropy'], arrays['loss'])
  check_gradients_and_step(
    POINTER_CHASING, params, grad, tree, arrays, name='adam', learning_rate=1e-3
  )


@pytest.mark.parametrize('backward', ('replay', 'segments'))
def test_windowed_pointer_chasing_bptt(backward):
  """Position t sees t-19 .. t (crt.md 11.2), in values and gradients, against plain NumPy."""
  config = POINTER_CHASING | dict(window=20, backward=backward)
  model, params, batch, arrays = load('pc_bptt_full', config)
  weights = {key[6:]: arrays[key].astype(np.float64) for key in arrays.files if 'param/' in key}
  plain = config | dict(correction='add')

  def loss(arrays):
    logits = numpy_reference.crt_sequential(arrays, batch['tokens'], plain)
    return numpy_reference.cross_entropy(logits, batch['targets'])

  assert_close(
    model.sequential(params, batch['tokens']),
    numpy_reference.crt_sequential(weights, batch['tokens'], plain),
  )
  metrics, grad, _ = gradients(model, config, params, batch)
  np.testing.assert_allclose(metrics['cross_entropy'], loss(weights), rtol=1e-5)
  assert abs(metrics['cross_entropy'] - arrays['loss']) > 1e-4, 'the window has to show'
  generator = np.random.default_rng(0)
  direction = {key: generator.standard_normal(a.shape) for key, a in weights.items()}
  ahead, behind = (
    loss({key: a + step * direction[key] for key, a in weights.items()}) for step in (1e-5, -1e-5)
  )
  slope = sum(np.vdot(grad[key], direction[key]) for key in weights)
  np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-3)


def check_gradients_and_step(config, params, grad, tree, arrays, **recipe):
  for key, value in grad.items():
    assert_close(value, arrays[f'grad/{key}'])
  assert_close(optax.tree.norm(tree), arrays['gradnorm'])
  # The reference's own gradients: Adam would amplify the round-off of those that are truly zero.
  reference = {key: arrays[f'grad/{key}'] for key in grad}
  tree = import_params(config, reference)
  optimizer = schema.experiment(base.crt_model()).optimizer
  optimizer.update(recipe)
  chain = make_optimizer(optimizer, crt_jax.build(config), steps=1)
  updates, _ = chain.update(tree, chain.init(params), params)
  stepped = export_arrays(config, optax.apply_updates(params, updates))
  for key, value in stepped.items():
    # Decay, update and their sum are rounded in both; 1 - 0.999 is off by 2^-25 in float32, so a
    # variance by 3e-5 and its root by half of that.
    expected = arrays[f'stepped/{key}']
    atol = 6 * 2**-24 * np.abs(expected).max() + 2e-5 * optimizer.learning_rate
    np.testing.assert_allclose(value, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('variant', CART_VARIANTS)
def test_cart(variant):
  config = CART | CART_VARIANTS[variant]
  model, params, batch, arrays = load('cart_d128', config)
  logits = jax.jit(model.apply)(params, batch['tokens']).logits_BxTxV
  assert_close(logits, arrays[f'{variant}/logits'])
  loss, _ = jax.jit(model.loss)(params, batch)
  assert_close(loss, arrays[f'{variant}/loss'])
  if variant in ('base', 'unfreeze_kv'):
    assert_close(model.sequential(params, batch['tokens']), arrays[f'{variant}/logits'])


def test_cart_gradients():
  model, params, batch, arrays = load('cart_d128', CART)
  _, grad, _ = gradients(model, CART, params, batch)
  keys = [key for key in arrays.files if key.startswith('base/grad/')]
  assert len(keys) == 24
  for key in keys:
    assert_close(grad[key.removeprefix('base/grad/')], arrays[key], tolerance=1e-4)


def test_cart_dense():
  model, params, batch, arrays = load('cart_dense_d128', CART_DENSE)
  assert_close(model.apply(params, batch['tokens']).logits_BxTxV, arrays['logits'])
  metrics, grad, _ = gradients(model, CART_DENSE, params, batch)
  assert_close(metrics['cross_entropy'], arrays['loss'])
  for key in arrays.files:
    if key.startswith('grad/'):
      assert_close(grad[key.removeprefix('grad/')], arrays[key], tolerance=1e-4)


EVERY_LAYOUT = {
  **{name: dict(CRT['crt_d2'], correction=name) for name in VARIANTS},
  'crt_d1': CRT['crt_d1'],
  'pointer_chasing': POINTER_CHASING,
  'roformer': ROFORMER,
  'roformer_head_ffn': dict(ROFORMER, style='roformer_head_ffn'),
  'pointer_chasing_transformer': dict(ROFORMER, rotary='integer'),
  'cart_dense': CART_DENSE,
  'cart_dense_latent': dict(CART_DENSE, latent_ratio=4),
  **{name: dict(CART, **changes) for name, changes in CART_VARIANTS.items()},
  'cart_unshared': dict(CART, share_core=False),
  'cart_self': dict(CART, core='self'),
  'cart_self_unshared': dict(CART, core='self', share_core=False),
  'cart_full_rank': dict(CART, latent_ratio=0),
  'cart_anchor_norm': dict(CART, anchor_norm=True),
  'crt_cart': dict(CART, name='crt', block='cart', anchor_norm=True),
  'crt_cart_sa': dict(CART, name='crt', block='cart', core='self', correction='sa'),
}


@pytest.mark.parametrize('layout', EVERY_LAYOUT)
def test_export_then_import_returns_every_parameter(layout):
  config = EVERY_LAYOUT[layout]
  params = params_of(crt_jax.build(config))
  arrays = export_arrays(config, params)
  assert sum(a.size for a in arrays.values()) == sum(a.size for a in jax.tree.leaves(params))
  jax.tree.map(np.testing.assert_array_equal, import_params(config, arrays), params)


def test_names_of_the_variants():
  def names(correction):
    config = dict(CRT['crt_d2'], correction=correction)
    params = jax.eval_shape(crt_jax.build(config).init, jax.random.key(0))
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), params)
    return {name: a.shape for name, a in export_arrays(config, zeros).items()}

  base = set(names('add'))
  assert {'ln_corr.bias', 'corr_ffn.ffn.0.weight', 'corr_ffn.ffn.2.bias', 'head.bias'} <= base
  assert base - set(names('block_head')) == {n for n in base if 'corr' in n}
  assert names('concat')['corr_ffn.ffn.0.weight'] == (128, 64)
  attention = {f'corr_attn.{p}.weight' for p in ('keys', 'queries', 'values', 'proj')}
  assert attention | {'ln_corr_attn.weight', 'ln_corr_ffn.weight'} <= set(names('sa'))
  assert 'ln_corr.weight' not in names('sa')
  assert 'ln_corr.weight' in names('tied') and 'corr_ffn.ffn.0.weight' not in names('tied')


@pytest.mark.parametrize('share_core', [True, False])
@pytest.mark.parametrize('core', ['cross', 'self'])
def test_names_of_a_cart(core, share_core):
  """As tests/fixtures' source lists them, C=128, P=1, R=2: matrices [out, in]."""
  config = dict(CART, core=core, share_core=share_core, loops=2, prelude_layers=1)
  config |= dict(short_prelude=True)
  shapes = jax.eval_shape(crt_jax.build(config).init, jax.random.key(0))
  zeros = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)
  found = {name: a.shape for name, a in export_arrays(config, zeros).items()}
  d, c, hidden = 128, 32, 512
  query = {'attn.q_proj.weight': (d, d), 'attn.o_proj.weight': (d, d)}
  keys = {'kv_down.weight': (c, d), 'k_up.weight': (d, c), 'v_up.weight': (d, c)}
  rest = {'norm1.weight': (d,), 'norm2.weight': (d,), 'ffn.down.weight': (d, hidden)}
  rest |= {'ffn.gate.weight': (hidden, d), 'ffn.up.weight': (hidden, d)}
  layer = query | rest | {f'attn.{name}': shape for name, shape in keys.items()}
  expected = {'embedding.weight': (61, d), 'final_norm.weight': (d,), 'hyper.weights': (3,)}
  expected |= {'lti.a_param': (d,), 'lie.proj.weight': (d, 32)}
  parts = {'prelude.0': layer, 'coda': layer, 'kv_proj': keys if core == 'cross' else {}}
  for name in ('core',) if share_core else ('core.0', 'core.1'):
    parts[name] = query | rest if core == 'cross' else layer
  for part, arrays in parts.items():
    expected |= {f'{part}.{name}': shape for name, shape in arrays.items()}
  assert found == expected


def test_keys_play_the_query_in_the_language_model_alone():
  for rotary, name in (('integer_reversed', 'keys'), ('integer', 'queries')):
    config = dict(CRT['crt_d1'], rotary=rotary)
    params = params_of(crt_jax.build(config))
    query = np.asarray(params['layers']['attention']['qkv']['weight'][0, 0]).reshape(32, 32)
    arrays = export_arrays(config, params)
    np.testing.assert_array_equal(arrays[f'block.sa_head.{name}.weight'], query)


def test_tied_arrays_may_be_listed_again_if_equal():
  config = dict(CRT['crt_d2'], correction='tied_pure')
  arrays = export_arrays(config, params_of(crt_jax.build(config)))
  arrays['ln_corr.weight'] = arrays['blocks.1.ln2.weight']
  arrays['corr_ffn.ffn.0.weight'] = arrays['blocks.1.ffn.ffn.0.weight']
  import_params(config, arrays)
  arrays['corr_ffn.ffn.0.weight'] = arrays['blocks.0.ffn.ffn.0.weight']
  with pytest.raises(ValueError, match='corr_ffn.ffn.0.weight.* differs'):
    import_params(config, arrays)


def test_mistakes_are_named():
  config = CRT['crt_d1']
  arrays = export_arrays(config, params_of(crt_jax.build(config)))
  without = {key: value for key, value in arrays.items() if key != 'ln_f.bias'}
  with pytest.raises(ValueError, match='missing reference arrays: ln_f.bias'):
    import_params(config, without)
  with pytest.raises(ValueError, match='unexpected reference arrays: extra'):
    import_params(config, arrays | dict(extra=np.zeros(3)))
  with pytest.raises(ValueError, match=r"'head.bias' has shape \(3,\); the model needs \(37,\)"):
    import_params(config, arrays | {'head.bias': np.zeros(3)})


def test_float16_is_cast_and_float64_kept(float64):
  config = CRT['crt_d1']
  arrays = export_arrays(config, params_of(crt_jax.build(config)))
  for given, kept in (('float16', 'float32'), ('float64', 'float64')):
    params = import_params(config, {key: a.astype(given) for key, a in arrays.items()})
    assert {str(a.dtype) for a in jax.tree.leaves(params)} == {kept}
