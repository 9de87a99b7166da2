"""The layers of published weights, 'llama' and 'gpt2', against their formulas in float64 NumPy, by
loops over layers, heads and positions; what they cost, and what is refused."""

import math

import jax
import numpy as np
import pytest
from scipy.special import erf

import crt_jax
from crt_jax import accounting, decoding, sharding
from tests.close import FLOAT64, assert_close
from tests.contract.models import CONFIGS, model_of, params_of, tokens_of

LENGTH = 5
LLAMA3 = dict(
  rotary_scaling='llama3', rotary_factor=8, rotary_low=0.5, rotary_high=2, rotary_positions=9
)
CASES = {
  'llama': dict(),
  'llama_stretched': LLAMA3 | dict(tied=True, window=3),
  'llama_linear': dict(rotary_scaling='linear', rotary_factor=2, rotary_theta=50.0),
  'llama_plain': dict(kv_heads=0, head_width=0, qk_norm=False, qkv_bias=False),
  'gpt2': dict(),
  'gpt2_narrow': dict(feed_forward_width=24),
  'crt_llama': dict(depth=LENGTH + 1),
  'crt_gpt2': dict(depth=LENGTH + 1, window=3),
}


def built(case, **changes):
  name = case if case in CONFIGS else case.split('_')[0]
  return model_of(name, **CASES[case] | changes)


# ---- the formulas ------------------------------------------------------------------------------


def norm(p, x, eps):
  """LayerNorm where there is a bias, else RMSNorm."""
  x = x - x.mean(-1, keepdims=True) if 'bias' in p else x
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p['scale'] + p.get('bias', 0)


def turned(x_A, position, c):
  """One head's vector at one position, halves turned by stretched angles."""
  half = len(x_A) // 2
  turned_A = np.empty_like(x_A)
  for m in range(half):
    frequency = c.rotary_theta ** (-m / half)
    if c.rotary_scaling == 'linear':
      frequency /= c.rotary_factor
    if c.rotary_scaling == 'llama3':
      wavelength = 2 * math.pi / frequency
      if wavelength > c.rotary_positions / c.rotary_low:
        frequency /= c.rotary_factor
      elif wavelength >= c.rotary_positions / c.rotary_high:
        smooth = (c.rotary_positions / wavelength - c.rotary_low) / (c.rotary_high - c.rotary_low)
        frequency = (1 - smooth) * frequency / c.rotary_factor + smooth * frequency
    cos, sin = math.cos(position * frequency), math.sin(position * frequency)
    turned_A[m] = x_A[m] * cos - x_A[m + half] * sin
    turned_A[m + half] = x_A[m + half] * cos + x_A[m] * sin
  return turned_A


def projected(p, c, x_TxC):
  """Queries [T, H, A], keys and values [T, G, A]."""
  qkv = [*p['qkv']['weight']] if 'qkv' in p else [p['q']['weight'], *p['kv']['weight']]
  q, k, v = (np.einsum('tc,hac->tha', x_TxC, weight) for weight in qkv)
  if 'bias' in p.get('qkv', p.get('q')):
    biases = [*p['qkv']['bias']] if 'qkv' in p else [p['q']['bias'], *p['kv']['bias']]
    q, k, v = q + biases[0], k + biases[1], v + biases[2]
  if 'q_norm' in p:
    q, k = norm(p['q_norm'], q, c.norm_eps), norm(p['k_norm'], k, c.norm_eps)
  if c.style == 'llama':
    q, k = (
      np.stack([[turned(head, t, c) for head in heads] for t, heads in enumerate(x)])
      for x in (q, k)
    )
  return q, k, v


def attention(p, c, x_TxC):
  q, k, v = projected(p, c, x_TxC)
  mixed = np.zeros_like(q)
  for t in range(len(q)):
    first = max(0, t - c.window + 1) if c.window else 0
    for h in range(c.heads):
      g = h * k.shape[1] // c.heads
      weights = np.exp(k[first : t + 1, g] @ q[t, h] / math.sqrt(c.head_width))
      mixed[t, h] = weights / weights.sum() @ v[first : t + 1, g]
  return np.einsum('tha,cha->tc', mixed, p['out']['weight']) + p['out'].get('bias', 0)


def feed_forward(p, x, activation=None):
  if 'gate_up' in p:
    gate, up = np.einsum('tc,gfc->gtf', x, p['gate_up']['weight'])
    return gate / (1 + np.exp(-gate)) * up @ p['down']['weight'].T
  hidden = activation(x @ p['up']['weight'].T + p['up']['bias'])
  return hidden @ p['down']['weight'].T + p['down']['bias']


def gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x):
  return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def eps_of(c):
  return c.norm_eps if c.style == 'llama' else 1e-5


def block(params, c, x_TxC):
  eps = eps_of(c)
  for i in range(c.layers):
    p = jax.tree.map(lambda a, i=i: a[i], params['layers'])
    x_TxC = x_TxC + attention(p['attention'], c, norm(p['norm1'], x_TxC, eps))
    x_TxC = x_TxC + feed_forward(p['feed_forward'], norm(p['norm2'], x_TxC, eps), gelu_tanh)
  return x_TxC


def logits_of(params, c, tokens_T):
  """Of a transformer, or of a CRT by its recurrence, the whole past anew at each position."""
  table_VxC = params['embedding']['weight']
  e_TxC = table_VxC[tokens_T]
  if 'positions' in params['embedding']:
    e_TxC = e_TxC + params['embedding']['positions'][: len(tokens_T)]
  if c.name == 'crt':
    p, x, z = params['correction'], np.zeros((0, c.width)), np.zeros(c.width)
    for e in e_TxC:
      x = np.vstack([x, e + feed_forward(p['feed_forward'], norm(p['norm'], z + e, 1e-5), gelu)])
      z = block(params, c, x)[-1]
    e_TxC = x
  hidden = norm(params['final_norm'], block(params, c, e_TxC), eps_of(c))
  return hidden @ params.get('output', params['embedding'])['weight'].T


@pytest.mark.parametrize('case', CASES)
def test_forward_and_decoding_are_those_of_the_formulas(case, float64):
  model = built(case)
  params, tokens = params_of(model, dtype='float64'), tokens_of(model, length=LENGTH)
  arrays = jax.tree.map(np.asarray, params)
  expected = np.stack([logits_of(arrays, model.config, row) for row in np.asarray(tokens)])
  assert_close(jax.jit(model.apply)(params, tokens).logits_BxTxV, expected, FLOAT64)
  state, _ = model.prefill(params, model.decode_state(2, LENGTH), tokens[:, :-1], chunk=3)
  assert_close(model.step(params, state, tokens[:, -1])[1], expected[:, -1], FLOAT64)


# ---- what they cost ----------------------------------------------------------------------------


@pytest.mark.parametrize('case', [*CASES, 'sa', 'tied'])
def test_counts_are_those_of_the_arrays(case):
  more = {} if case in CASES else dict(correction=case)
  model = built(case if case in CASES else 'crt_llama', **more)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  stored = sum(a.size for a in jax.tree.leaves(shapes))
  assert accounting.parameters(model.config).stored == stored
  given = {name: value for name, value in vars(model.config).items() if value}
  assert accounting.parameters(given).stored == stored


def test_smollm2_has_its_published_size():
  fields = dict(name='transformer', style='llama', vocab_size=49_152, width=576, heads=9)
  fields |= dict(kv_heads=3, feed_forward_width=1536, layers=30, tied=True)
  assert accounting.parameters(fields).stored == 134_515_008
  gpt2 = dict(name='transformer', style='gpt2', vocab_size=50_257, width=768, heads=12, layers=12)
  assert accounting.parameters(gpt2 | dict(max_positions=1024)).stored == 124_439_808


def test_a_correction_that_borrows_multiplies_by_what_it_borrows():
  tied, own = (built('crt_llama', correction=name).config for name in ('tied', 'nosub'))
  feed_forward = 3 * tied.width * tied.feed_forward_width
  assert accounting.crt_paper(tied) - accounting.crt_paper(own) == feed_forward


@pytest.mark.parametrize('correction', ('tied', 'tied_pure', 'sa', 'concat'))
@pytest.mark.parametrize('name', ('crt_llama', 'crt_gpt2'))
def test_corrections_over_them_become_exact(name, correction, float64):
  model = model_of(name, correction=correction, depth=LENGTH + 1, layers=1)
  params, tokens = params_of(model, dtype='float64'), tokens_of(model, length=LENGTH)
  found = jax.jit(model.apply)(params, tokens).logits_BxTxV
  assert_close(found, model.sequential(params, tokens), FLOAT64)


# ---- limits ------------------------------------------------------------------------------------


def test_a_text_has_no_more_positions_than_were_learned():
  model = built('gpt2', max_positions=4)
  params, tokens = params_of(model), tokens_of(model, length=LENGTH)
  message = 'text of 5 positions: model.max_positions=4 were learned; use at most 4'
  state = model.decode_state(2, 8)
  last, _ = model.prefill(params, state, tokens[:, :4])
  calls = (
    lambda: model.apply(params, tokens),
    lambda: model.sequential(params, tokens),
    lambda: model.prefill(params, state, tokens),
    lambda: model.step(params, last, tokens[:, 0]),
    lambda: model.check_length(LENGTH),
    lambda: decoding.generate(model, params, [[1]], 2, context=LENGTH),
  )
  for call in calls:
    with pytest.raises(ValueError, match=message):
      call()
  assert np.isnan(jax.jit(model.step)(params, last, tokens[:, 0])[1]).all()


def test_keys_that_do_not_divide_over_the_mesh_are_named():
  model = built('llama', kv_heads=1, vocab_size=24)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  mesh = sharding.make_abstract_mesh(tensor=2)
  message = r'attention/kv/bias, dimension 2 \(kv_heads, 1\) is not divisible by mesh.tensor=2'
  with pytest.raises(ValueError, match=message):
    sharding.param_shardings(model.axes(), shapes, mesh)


@pytest.mark.parametrize(
  'name, changes, message',
  (
    ('llama', dict(kv_heads=3), 'model.heads=4 must be divisible by model.kv_heads=3; use .*=1'),
    ('llama', dict(head_width=7), 'model.head_width=7 must be even'),
    ('llama', dict(head_width=0, heads=3, kv_heads=0), 'model.width=16 must be divisible by'),
    ('llama', dict(rotary='integer'), "model.rotary='integer' must be 'standard' for .*'llama'"),
    ('llama', dict(rotary_scaling='yarn'), "model.rotary_scaling='yarn' must be one of 'none'"),
    ('llama', dict(rotary_scaling='linear'), 'model.rotary_factor=1.0 must be above 1'),
    ('llama', LLAMA3 | dict(rotary_low=2), 'model.rotary_high=2.0 must be above model.rotary_low'),
    (
      'llama',
      dict(max_positions=9),
      "model.max_positions=9 is only for model.style='gpt2'; set that",
    ),
    ('gpt2', dict(max_positions=0), 'model.max_positions is missing'),
    ('gpt2', dict(rotary='standard'), "model.rotary='standard' must be '' for model.style='gpt2'"),
    ('gpt2', dict(kv_heads=1), "model.kv_heads=1 is only for model.style='llama'; set that"),
    (
      'gpt2',
      dict(norm_eps=1e-5),
      "model.norm_eps=1e-05 is only for model.style='cart_dense' or model",
    ),
    (
      'roformer',
      dict(feed_forward_width=8),
      "is only for model.style='llama' or model.style='gpt2'",
    ),
    ('crt', dict(style='cart_dense'), "model.style='cart_dense' must be one of 'roformer', 'll"),
    ('crt_cart', dict(style='gpt2'), "model.style='gpt2' is only for model.block='transformer'"),
  ),
)
def test_mistakes(name, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    crt_jax.build(CONFIGS[name] | changes)
  assert '\n' not in str(error.value)
