"""Each layer against its formula, worked by hand or in plain Python."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax.layers import attention, linear, norm
from crt_jax.layers.attention import Attention, attend, entries_of
from crt_jax.layers.feed_forward import FeedForward, gelu, rounded_once, swiglu
from crt_jax.layers.norm import Norm
from crt_jax.layers.rotary import KINDS, rotate
from tests.close import FEW_PRODUCTS, FLOAT64, assert_close

_CRT = dict(name='crt', vocab_size=97, width=32, heads=4, layers=2, rotary='integer')
_CART = dict(name='cart', vocab_size=97, width=32, head_width=8, prelude_layers=2)


def initial(config, generator=None):
  """{'layers/attention/qkv/weight': array, ...} of a fresh model."""
  params = jax.jit(crt_jax.build(config).init)(jax.random.key(0, impl=generator))
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {'/'.join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def assert_uniform(name, a, bound):
  """U(-bound, bound): inside, reaching the edges, centred, of the right spread."""
  edge = bound * (1 - 8 / a.size)  # missed with probability 2 exp(-4)
  assert -bound <= a.min() < -edge and edge < a.max() <= bound, name
  error = 4 * bound / math.sqrt(a.size)
  assert abs(a.mean()) < error and abs(a.std() - bound / math.sqrt(3)) < error, name


def assert_normal(name, a, stddev):
  """N(0, stddev), told from a uniform distribution by its tails."""
  error = 4 * stddev / math.sqrt(a.size)
  assert abs(a.mean()) < error and abs(a.std() - stddev) < error, name
  assert np.abs(a).max() > 2.2 * stddev, name


def test_crt_starts_as_pytorch_would():
  """Weights and biases U(+-1/sqrt(fan_in)), whatever is fused into one array (crt.md 2.6)."""
  arrays = initial(_CRT | dict(correction='concat'))
  assert_normal('embedding', arrays.pop('embedding/weight'), 1.0)
  fan_ins = {
    'layers/attention/qkv': 32,  # [3, H, A, C]
    'layers/attention/out': 32,  # [C, H, A]
    'layers/feed_forward/up': 32,
    'layers/feed_forward/down': 128,
    'correction/feed_forward/up': 64,  # reads [s; e]
    'correction/feed_forward/down': 128,
    'output': 32,
  }
  for name, fan_in in fan_ins.items():
    for part in ('weight', 'bias'):
      a = arrays.pop(f'{name}/{part}')
      assert_uniform(f'{name}/{part}', a, fan_in**-0.5)
      assert np.any(a[0] != a[1]), name  # layers of a stack, or rows, are drawn apart
  norms = ('layers/norm1', 'layers/norm2', 'correction/norm', 'final_norm')
  assert arrays.keys() == {f'{norm}/{part}' for norm in norms for part in ('scale', 'bias')}
  for name, a in arrays.items():
    np.testing.assert_array_equal(a, float(name.endswith('scale')), name)


def test_cart_starts_from_one_normal_distribution():
  """All linear weights and the embedding N(0, 0.02) (cart.md 2.4, 2.5, 2.8)."""
  # This generator compiles fast; under vmap it repeats itself, so there is one layer of each kind.
  arrays = initial(_CART | dict(anchor_norm=True), 'rbg')
  np.testing.assert_array_equal(arrays.pop('blend/weight'), [1, 0, 0])
  np.testing.assert_allclose(arrays.pop('gate/logit'), np.full(32, math.log(9)), rtol=1e-6)
  assert not any(name.endswith('bias') for name in arrays)
  for name, a in arrays.items():
    if name.endswith('scale'):
      np.testing.assert_array_equal(a, 1, name)
    else:
      assert_normal(name, a, 0.02)


def test_rotary_angles_by_hand():
  """Position 2 of a head [1, 2, 3, 4]: which pairs turn, by how much, in which direction."""
  x_BxTxHxA = jnp.array([1.0, 2.0, 3.0, 4.0])[None, None, None]
  position_BxT = jnp.array([[2]])
  cos, sin = math.cos(2), math.sin(2)
  slow_cos, slow_sin = math.cos(0.2), math.sin(0.2)  # 2 * 100^(-2/4)
  expected = dict(
    integer=[1, 2, 3 * cos - 4 * sin, 3 * sin + 4 * cos],
    integer_reversed=[1, 2, 3 * cos + 4 * sin, -3 * sin + 4 * cos],
    standard=[
      1 * cos - 3 * sin,
      2 * slow_cos - 4 * slow_sin,
      3 * cos + 1 * sin,
      4 * slow_cos + 2 * slow_sin,
    ],
  )
  assert expected.keys() == set(KINDS)
  for kind, values in expected.items():
    turned = rotate(x_BxTxHxA, position_BxT, kind, theta=100.0)
    assert_close(turned[0, 0, 0], np.array(values), 1e-6, kind)


@pytest.mark.parametrize('kind', KINDS)
def test_scores_depend_on_differences_of_positions_only(kind):
  generator = np.random.default_rng(0)
  q, k = generator.standard_normal((2, 3, 5, 2, 8)).astype(np.float32)
  start_B = np.array([0, 7, 40])

  def scores(position_BxT):
    turned = (rotate(jnp.asarray(a), position_BxT, kind) for a in (q, k))
    return np.einsum('btha,bsha->bhts', *turned)

  at_zero = scores(np.arange(5)[None])
  moved = scores(start_B[:, None] + np.arange(5))
  # An angle of up to 45 is rounded to 45 * 2^-24 = 3e-6.
  assert_close(moved, np.broadcast_to(at_zero, moved.shape), FEW_PRODUCTS)
  assert np.abs(scores(2 * np.arange(5)[None]) - at_zero).max() > 0.1


@pytest.mark.parametrize('kind, eps', (('layer', 1e-5), ('rms', 1e-6)))
def test_norm_with_an_eps_that_shows(kind, eps):
  """At a mean square of 1e-6 the eps decides; the mean is taken out by 'layer' alone."""
  x = np.array([1e-3, -1e-3, 1e-3, -1e-3]) + (5.0 if kind == 'layer' else 0.0)
  params = dict(scale=jnp.array([1.0, 2.0, 3.0, 4.0]))
  expected = np.array([1, -2, 3, -4]) * 1e-3 / math.sqrt(1e-6 + eps)
  if kind == 'layer':
    params['bias'] = jnp.array([0.5, 0.0, 0.0, 0.0])
    expected[0] += 0.5
  norm = Norm(4) if kind == 'layer' else Norm(4, 'rms', eps)
  # 5.001 has a relative error of 1e-8 in float32 and its deviation one of 1e-4.
  assert_close(norm.apply({'params': params}, jnp.asarray(x)), expected, 1e-3)


def test_rms_norm_keeps_the_mean():
  params = dict(scale=jnp.ones(2))
  y = Norm(2, 'rms').apply({'params': params}, jnp.array([3.0, 4.0]))
  np.testing.assert_allclose(y, np.array([3, 4]) / math.sqrt(12.5), rtol=1e-5)


def plain_norm(x, eps):
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


@pytest.mark.parametrize('rows', (1, 2, 3))
@pytest.mark.parametrize('form', (norm._in_one_pass, norm._in_two_passes))
def test_derivatives_of_a_layer_norm(form, rows, monkeypatch):
  """By their formula, as plain differentiation has them; the statistics of every platform."""
  monkeypatch.setattr(norm, '_in_two_passes', form)

  with jax.enable_x64(True):
    generator = np.random.default_rng(rows)
    x, dx, dy = (jnp.asarray(a) for a in generator.standard_normal((3, rows, 4, 7)))
    found, expected = (functools.partial(f, eps=0.1) for f in (norm.standardised, plain_norm))
    assert_close(*(jax.jvp(f, (x + 9,), (dx,)) for f in (found, expected)), FLOAT64)
    assert_close(*(jax.vjp(f, x + 9)[1](dy) for f in (found, expected)), FLOAT64)


@pytest.mark.parametrize('form', (norm._in_one_pass, norm._in_two_passes))
def test_second_derivatives_of_a_layer_norm_in_a_scan(form, monkeypatch):
  monkeypatch.setattr(norm, '_in_two_passes', form)

  def total(f, x):
    return jax.lax.scan(lambda y, _: (f(jnp.sin(y), 0.1), None), x, length=2)[0][..., 0].sum()

  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5)))
    found, expected = (
      jax.jit(jax.hessian(functools.partial(total, f)))(x) for f in (norm.standardised, plain_norm)
    )
    assert_close(found, expected, FLOAT64)


def test_a_variance_in_one_pass_loses_no_digits():
  x = 1000 + np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
  mean, variance = norm._in_one_pass(jnp.asarray(x))
  np.testing.assert_allclose(mean[:, 0], x.astype(float).mean(1), rtol=1e-6)
  np.testing.assert_allclose(variance[:, 0], x.astype(float).var(1), rtol=1e-4)


def test_a_gpu_reads_the_stream_once_for_the_statistics_of_a_norm():
  x = jax.ShapeDtypeStruct((2, 8), jnp.float32)

  def reductions(platform):
    forward = jax.jit(lambda x: jax.linearize(lambda x: norm.standardised(x, 1e-5), x)[0])
    return (
      forward.trace(x).lower(lowering_platforms=(platform,)).as_text().count('stablehlo.reduce')
    )

  assert (reductions('cuda'), reductions('cpu')) == (1, 2)


def test_default_eps_of_the_models():
  """LayerNorm of the CRT 1e-5, RMSNorm of the CART 1e-6."""
  assert Norm(4).eps == 1e-5
  assert crt_jax.build(_CART).config.norm_eps == 1e-6


def test_gelu_is_the_exact_one():
  x = np.linspace(-6, 6, 97, dtype=np.float32)
  expected = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)])
  # Near -6 a float32 1 + erf keeps no digit; what is lost there is below 1e-6 of |x|.
  gap = np.abs(np.asarray(gelu(x)) - expected)
  assert np.all(gap <= 1e-6 * np.abs(x))
  positive = x > 0
  np.testing.assert_allclose(gelu(x)[positive], expected[positive], rtol=1e-6)


def test_swiglu():
  """down(silu(gate(x)) * up(x)), gate first of the fused pair, no biases (cart.md 2.3)."""
  generator = np.random.default_rng(0)
  gate_up_2xFxC, down_CxF = generator.standard_normal((2, 6, 4)), generator.standard_normal((4, 6))
  x = generator.standard_normal((2, 3, 4))
  layer = FeedForward(width=4, hidden=6, activation='swiglu', bias=False)
  params = dict(gate_up=dict(weight=gate_up_2xFxC), down=dict(weight=down_CxF))
  params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
  gate, up = x @ gate_up_2xFxC[0].T, x @ gate_up_2xFxC[1].T
  expected = (gate / (1 + np.exp(-gate)) * up) @ down_CxF.T
  y = layer.apply({'params': params}, jnp.asarray(x, jnp.float32))
  assert_close(y, expected, FEW_PRODUCTS)


# ---- linear -----------------------------------------------------------------------------------

SHAPES = (((6,), (8,)), ((3, 2, 4), (8,)), ((6,), (2, 4)))


@pytest.mark.parametrize('out_shape, in_shape', SHAPES)
@pytest.mark.parametrize('batch_shape', ((1, 1), (2, 1), (2, 3)))
@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_few_rows_give_the_same_product_and_derivatives(out_shape, in_shape, batch_shape, dtype):
  """However a platform reads the weight; with bfloat16 the sum is float32 either way."""
  generator = np.random.default_rng(0)

  def draw(shape):
    return jnp.asarray(generator.standard_normal(shape), dtype)

  arguments = draw(batch_shape + in_shape), draw(out_shape + in_shape)
  few, product = (
    jax.jit(functools.partial(f, len(in_shape), jnp.dtype('float32')))
    for f in (linear._few_rows, linear._product)
  )
  assert_close(few(*arguments), product(*arguments), FEW_PRODUCTS)
  # A bfloat16 derivative may be rounded to either neighbour.
  tolerance = FEW_PRODUCTS if dtype == 'float32' else 2**-7
  tangents = jax.tree.map(jnp.sin, arguments)
  for one, two in zip(
    jax.jvp(few, arguments, tangents), jax.jvp(product, arguments, tangents), strict=True
  ):
    assert_close(one, two, tolerance)
  gradients = (
    jax.jit(jax.grad(lambda x, w, f=f: jnp.sum(f(x, w) ** 2), (0, 1)))(*arguments)
    for f in (few, product)
  )
  assert_close(*gradients, tolerance)


@pytest.mark.parametrize('rows', (1, 4))
@pytest.mark.parametrize('out_shape, in_shape', (((3, 8, 64), (512,)), ((512,), (8, 64))))
def test_few_rows_read_the_weight_where_it_lies(rows, out_shape, in_shape):
  """A transposed or packed weight would be a buffer of its size."""
  x, weight = jnp.zeros((rows, 1, *in_shape)), jnp.zeros(out_shape + in_shape)
  product = jax.jit(functools.partial(linear.contract, count=len(in_shape)))
  memory = product.lower(x, weight).compile().memory_analysis()
  assert memory.temp_size_in_bytes < weight.nbytes / 4


# ---- attention --------------------------------------------------------------------------------

BATCH, SLOTS, LENGTH, HEADS, HEAD_WIDTH = 2, 5, 4, 4, 8
_attend = jax.jit(attend, static_argnames=('window', 'dropout', 'kernel'))


def draw_attention(groups, length=LENGTH):
  """q, k, v of the new positions, and a past of 3 and 5 valid slots; the others hold rubbish."""
  generator = np.random.default_rng(0)

  def draw(length, heads):
    shape = (BATCH, length, heads, HEAD_WIDTH)
    return generator.standard_normal(shape).astype(np.float32)

  q, k, v = draw(length, HEADS), draw(length, groups), draw(length, groups)
  position_B = np.array([3, SLOTS], np.int32)
  cache = entries_of(draw(SLOTS, groups), draw(SLOTS, groups))
  for a in cache.values():
    a[0, :, 3:] = 1e3
  return q, k, v, (cache, position_B)


def attend_by_hand(q, k, v, past, window):
  """One query at a time over the list of keys that it sees."""
  mixed = np.zeros(q.shape)
  for b, t, h in np.ndindex(q.shape[:3]):
    g = h // (HEADS // k.shape[2])
    valid = 0 if past is None else past[1][b]
    keys, values = list(k[b, : t + 1, g]), list(v[b, : t + 1, g])
    if past is not None:
      keys = list(past[0]['k'][b, g, :valid]) + keys
      values = list(past[0]['v'][b, g, :valid]) + values
    keys, values = np.array(keys[-window:]), np.array(values[-window:])  # -0 keeps all
    weights = np.exp(keys @ q[b, t, h] / math.sqrt(HEAD_WIDTH))
    mixed[b, t, h] = weights @ values / weights.sum()
  return mixed


@pytest.mark.parametrize('groups', (HEADS, 2, 1))
@pytest.mark.parametrize('window', (0, 1, 3))
def test_attend(groups, window):
  q, k, v, past = draw_attention(groups)
  for given in (None, past):
    mixed = _attend(q, k, v, given, window=window, dropout=None, kernel='xla')
    expected = attend_by_hand(q, k, v, given, window)
    assert_close(mixed, expected, FEW_PRODUCTS)


@pytest.mark.parametrize('window', (0, 1, 3))
def test_attention_in_blocks(window, monkeypatch):
  monkeypatch.setattr(attention, 'BLOCK', 2)
  monkeypatch.setattr(attention, 'BLOCKS', 3)
  q, k, v, _ = draw_attention(groups=2, length=7)
  expected = [(0, 3, 0, 3), (3, 6, 0, 6), (6, 7, 0, 7)]
  if window:
    expected = [(a, b, max(0, a - window + 1), b) for a, b, _, _ in expected]
  assert attention.blocks(7, window) == expected
  found = jax.jit(lambda q, k, v: attend(q, k, v, None, window, None, 'xla'))(q, k, v)
  assert_close(found, attend_by_hand(q, k, v, None, window), FEW_PRODUCTS)


@pytest.mark.parametrize('length,piece', [(64, 256), (64, 4), (67, 4), (74, 5)])
@pytest.mark.parametrize('window', (0, 3))
def test_a_long_text_keeps_no_attention_weights(window, length, piece, monkeypatch):
  """What the backward pass is given, and the gradient that it makes of it."""
  monkeypatch.setattr(attention, 'BLOCK', 8)
  monkeypatch.setattr(attention, 'PIECE', piece)
  q, k, v, _ = draw_attention(groups=2, length=length)
  blocks = attention.blocks(length, window)
  assert [start for start, *_ in blocks] == [0, *(stop for _, stop, *_ in blocks[:-1])]
  assert blocks[-1][1] == length

  def gradient_and_kept(long: int):
    monkeypatch.setattr(attention, 'LONG', long)
    mixed, pull = jax.vjp(lambda *qkv: attend(*qkv, None, window, None, 'xla'), q, k, v)
    return pull(jnp.sin(mixed)), sum(kept.size for kept in jax.tree.leaves(pull))

  (expected, kept_all), (found, kept) = gradient_and_kept(length + 1), gradient_and_kept(length)
  jax.tree.map(lambda a, b: assert_close(a, b, FEW_PRODUCTS), found, expected)
  assert kept <= q.size + k.size + v.size + length < kept_all


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'bfloat16'])
@pytest.mark.parametrize('queries', [1, 3])
def test_keys_of_a_cache_and_new_ones_give_the_same_scores_joined_and_apart(queries, dtype):
  with jax.enable_x64(dtype == 'float64'):
    rng = np.random.default_rng(0)
    shapes = (2, queries, 4, 8), (2, 4, 6, 8), (2, queries, 4, 8)
    q, k, new = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    joined = attention.products_joined(q, k, new)
    assert joined.dtype == ('float64' if dtype == 'float64' else 'float32')
    keys = np.concatenate([k, new.swapaxes(1, 2)], axis=2, dtype=np.float64)
    expected = np.einsum('bnga,bgsa->bgns', np.asarray(q, np.float64), keys)
    for found in (joined, attention.products_apart(q, k, new)):
      np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-12 if dtype == 'float64' else 3e-6
      )


def test_grouped_queries_equal_repeated_keys():
  q, k, v, (cache, position_B) = draw_attention(groups=2)
  options = dict(window=0, dropout=None, kernel='xla')
  grouped = _attend(q, k, v, (cache, position_B), **options)
  cache = {name: np.repeat(a, 2, axis=1) for name, a in cache.items()}
  k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
  whole = _attend(q, k, v, (cache, position_B), **options)
  assert_close(grouped, whole, FEW_PRODUCTS)


def test_attention_reaches_no_further_than_its_window():
  """Within one layer, position t hears of t-2..t for a window of 3, and of nothing else."""
  layer = Attention(width=8, heads=2, head_width=4, rotary='integer', window=3)
  generator = np.random.default_rng(0)
  shapes = dict(qkv=((3, 2, 4, 8), (3, 2, 4)), out=((8, 2, 4), (8,)))
  params = {
    name: {
      part: jnp.asarray(generator.standard_normal(shape), jnp.float32)
      for part, shape in zip(('weight', 'bias'), pair, strict=True)
    }
    for name, pair in shapes.items()
  }
  apply = jax.jit(lambda x: layer.apply({'params': params}, x)[0])
  x_BxTxC = generator.standard_normal((1, 7, 8)).astype(np.float32)
  changed = x_BxTxC.copy()
  changed[0, 2] += 1
  differs_T = (np.asarray(apply(x_BxTxC)) != np.asarray(apply(changed))).any(axis=(0, 2))
  assert differs_T.tolist() == [False, False, True, True, True, False, False]


def test_masks_are_drawn_and_used_apart_on_a_tpu():
  """Elsewhere the compiler may fuse what it likes."""
  layer, key, x = linear.Dropout(0.5), jax.random.key(0), jnp.ones((2, 3))
  traced = jax.jit(lambda x: layer.apply({}, x, rngs={'dropout': key})).trace(x)
  for platform in ('cpu', 'cuda', 'tpu'):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count('optimization_barrier') == 2 * (platform == 'tpu')


def test_products_of_a_gradient_have_the_dtype_of_the_factors():
  """Logits are float32; the two products of their backward pass are bfloat16 all the same."""
  x, weight = jnp.ones((100, 8), jnp.bfloat16), jnp.ones((16, 8), jnp.bfloat16)

  def loss(x, weight):
    logits = linear.contract(x, weight, 1, jnp.float32)
    assert logits.dtype == jnp.float32
    return jnp.sum(jnp.sin(logits))

  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, weight).jaxpr
  dots = [e for e in jaxpr.eqns if e.primitive.name == 'dot_general']
  assert [str(v.aval.dtype) for e in dots[-2:] for v in (*e.invars, *e.outvars)] == ['bfloat16'] * 6


def test_a_gradient_of_float16_logits_may_be_smaller_than_float16(float16):
  """As that of a mean over a batch is; products with 16 bits of it would all be 0."""
  x, weight = jnp.full((100, 8), 64, jnp.float16), jnp.ones((16, 8), jnp.float16)

  def loss(weight):
    return 1e-9 * jnp.sum(linear.contract(x, weight, 1, jnp.float32))

  np.testing.assert_allclose(jax.grad(loss)(weight), 6.4e-6, rtol=1e-2)


def test_gelu_of_16_bits_is_rounded_once():
  narrow = jnp.linspace(-3, 3, 64).astype(jnp.bfloat16)
  expected = jax.vmap(jax.grad(gelu))(narrow.astype(jnp.float32))
  found = jax.vmap(jax.grad(gelu))(narrow)
  np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


def test_activations_of_16_bits_are_stored_as_their_inputs():
  """So that 'none' stores half of what it does in float32, though they are computed there."""

  def stored_bytes(dtype):
    x = jnp.ones((32, 64), dtype)
    _, backward = jax.vjp(lambda x: rounded_once(swiglu, jnp.stack([gelu(x), x], axis=-2)), x)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(backward))

  assert stored_bytes('bfloat16') <= 4 * 32 * 64 * 2 < stored_bytes('float32') / 2
