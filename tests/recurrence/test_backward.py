"""Loops that store less have the values and gradients of the plain scan, windows included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax.recurrence.backward import LOOPS, in_stretches
from crt_jax.recurrence.passes import sequential
from tests.close import FLOAT64, assert_close
from tests.recurrence.scaled import BASE, largest_gap, loss_and_gradient, params_of, tokens_of

LENGTH = 7  # segments of 3, 3 and 1
CASES = {
  'full': dict(layers=2),
  'windowed': dict(layers=2, window=3),
  'own_position_only': dict(window=1),
  'window_beyond_the_text': dict(window=9),
  'attention_in_the_correction': dict(correction='sa', window=3),
  'head_reads_the_input': dict(correction='px'),
  'chunks': dict(driver='chunked', chunk=2, depth=2, window=3),
  'chunks_longer_than_the_window': dict(driver='chunked', chunk=4, depth=2, window=3),
}
SLOW = ('own_position_only', 'window_beyond_the_text', 'head_reads_the_input', 'chunks')

pytestmark = pytest.mark.usefixtures('float64')


@functools.cache
def found(backward: str, dropout: float = 0.0, **changes):
  """Loss and gradient of a model of two rows of 7 positions."""
  fields = BASE | dict(driver='sequential', convergence_weight=0.0) | changes
  model = crt_jax.build(fields | dict(backward=backward, dropout=dropout))
  key = jax.random.key(3) if dropout else None
  return loss_and_gradient(model, params_of(model), tokens_of(length=LENGTH), key)


@pytest.mark.parametrize('backward', ('segments', 'replay'))
@pytest.mark.parametrize(
  'case', [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES]
)
def test_every_loop_has_the_gradient_of_the_scan(case, backward):
  assert largest_gap(found(backward, **CASES[case]), found('scan', **CASES[case])) < 1e-12


@pytest.mark.parametrize('backward', ('segments', 'replay'))
def test_dropout_draws_the_same_masks_again(backward):
  changes = dict(dropout=0.3, window=3)
  assert largest_gap(found(backward, **changes), found('scan', **changes)) < 1e-12
  assert found('scan', **changes)[0] != found('scan', window=3)[0]


@pytest.mark.parametrize('window', (0, 3))
def test_the_window_is_that_of_the_parallel_mask(window):
  """A cache that keeps more than the window, or less, solves another task."""
  model = crt_jax.build(BASE | dict(driver='sequential', window=window, layers=2))
  params, tokens = params_of(model), tokens_of(length=LENGTH)
  apply = jax.jit(model.apply, static_argnames='depth')
  parallel = apply(params, tokens, depth=LENGTH + 1).logits_BxTxV
  trained = jax.jit(model.training_hidden)(params, tokens).hidden_BxTxC
  assert_close(model.head(params, trained), parallel, FLOAT64)
  assert_close(model.sequential(params, tokens), parallel, FLOAT64)
  other = crt_jax.build(BASE | dict(window=3 - window, layers=2))
  gap_T = np.abs(
    apply(params, tokens, depth=LENGTH + 1).logits_BxTxV - other.sequential(params, tokens)
  ).max((0, 2))
  assert gap_T[:3].max() < 1e-9 < 1e-3 < gap_T[3:].min()


def test_training_keeps_no_more_than_the_window():
  model = crt_jax.build(BASE | dict(driver='sequential', window=3))
  state = model.training_state(jnp.zeros((2, LENGTH, 8)))
  assert state.trailing and state.capacity == 2
  full = crt_jax.build(BASE | dict(driver='chunked', chunk=4))
  assert full.training_state(jnp.zeros((2, LENGTH, 8))).capacity == 8


@pytest.mark.parametrize('backward', ('scan', 'segments'))
def test_forward_mode_agrees_with_the_gradient(backward):
  model = crt_jax.build(BASE | dict(driver='sequential', backward=backward, window=3))
  params, tokens = params_of(model), tokens_of(length=LENGTH)
  batch = dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1))
  direction = params_of(model, seed=1)
  loss = lambda params: model.loss(params, batch)[0]  # noqa: E731
  _, tangent = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,)))(params, direction)
  gradient = loss_and_gradient(model, params, tokens)[1]
  projected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
  np.testing.assert_allclose(tangent, projected, rtol=1e-9)


def test_replay_has_no_forward_mode():
  model = crt_jax.build(BASE | dict(driver='sequential', backward='replay'))
  params, tokens = params_of(model), tokens_of()
  hidden = lambda params: model.training_hidden(params, tokens).hidden_BxTxC  # noqa: E731
  with pytest.raises(TypeError, match=r"no forward-mode .*; set backward='scan' or 'segments'"):
    jax.jvp(hidden, (params,), (params,))
  with pytest.raises(TypeError, match='forward-mode'):  # JAX's own words, of what is compiled
    jax.jvp(jax.jit(hidden), (params,), (params,))


@pytest.mark.parametrize('name', LOOPS)
def test_the_state_behind_a_loop_has_a_gradient_too(name):
  """The loop over the first part, then over the rest, is the plain scan over another first part."""
  assert largest_gap(in_two_parts(name, 4), in_two_parts('scan', LENGTH - 1)) < 1e-12


@functools.cache
def in_two_parts(name, cut):
  """Value and gradient of both parts' outputs and of the last state."""
  model = crt_jax.build(BASE | dict(window=3))
  params, tokens = params_of(model), tokens_of(length=LENGTH)

  def loss(params):
    recurrence, e_BxTxC = model.recurrence(params), model.parts(params).embed(tokens)
    state, hs = model.training_state(e_BxTxC), []
    for part in jnp.split(e_BxTxC, [cut], axis=1):
      state, h = sequential(recurrence, model.read, state, part, None, None, LOOPS[name])
      hs.append(h)
    ends = jax.tree.leaves((state.caches, state.recurrent))
    return sum(jnp.sum(jnp.sin(a)) for a in [*ends, jnp.concatenate(hs, axis=1)])

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize('length', (1, 3, 7, 9))
def test_stretches_lose_nothing(length):
  def one(state, xs):
    return jax.lax.scan(lambda s, x: (s + x, s * x), state, xs[0])

  xs = jnp.arange(1.0, 8.0)
  state, ys = in_stretches(one, jnp.zeros(()), (xs,), length)
  expected_state, expected = one(jnp.zeros(()), (xs,))
  assert state == expected_state
  np.testing.assert_array_equal(ys, expected)


def temporaries(backward: str, length: int, window: int) -> int:
  """Bytes of temporaries of the gradient's compiled form."""
  fields = dict(driver='sequential', backward=backward, window=window, width=32)
  model = crt_jax.build(BASE | fields)
  params = jax.eval_shape(model.init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((4, length), jnp.int32)
  gradient = jax.jit(jax.grad(model.loss, has_aux=True))
  compiled = gradient.lower(params, dict(tokens=rows, targets=rows)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_replay_needs_a_few_caches():
  length, width, batch = 256, 32, 4
  one_cache = 2 * batch * length * width * np.dtype('float32').itemsize
  assert temporaries('replay', length, 0) < 8 * one_cache
  assert temporaries('scan', length, 0) > 20 * one_cache


def test_segments_need_less_than_in_proportion():
  short, long = (temporaries('segments', length, 16) for length in (64, 1024))
  assert long < 8 * short  # 16 times as long
  assert temporaries('scan', 256, 16) > 4 * temporaries('segments', 256, 16)
