"""Laws of the recurrence along the sequence, in float64 with weights x4: nothing contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.models.corrections import VARIANTS
from crt_jax.models.modules import apply_module
from crt_jax.recurrence.passes import chunked, sequential, unroll
from tests.close import FLOAT64, assert_close
from tests.recurrence.scaled import (
  BATCH,
  LENGTH,
  largest_gap,
  loss_and_gradient,
  prepared,
  problem,
)

pytestmark = pytest.mark.usefixtures('float64')


def assert_exact_exactly_when(gap_T, is_exact_T):
  np.testing.assert_array_less(gap_T[is_exact_T], 1e-10)
  np.testing.assert_array_less(1e-6, gap_T[~is_exact_T])


# The corrected start changes only which K is the first exact one: two variants here, the others and
# blocks of two layers in the slow suite.
CASES = [(name, 'embedding', 1) for name in VARIANTS]
CASES += [(name, 'corrected', 1) for name in ('add', 'px')]
SLOW = [(name, 'corrected', 1) for name in VARIANTS if name not in ('add', 'px')]
SLOW += [(name, 'embedding', 2) for name in ('add', 'concat', 'tied', 'sa')]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize('correction, start, layers', CASES)
def test_parallel_passes_are_exact_from_the_declared_depth_on(correction, start, layers):
  model, params, tokens, exact = prepared(correction=correction, start=start, layers=layers)
  first_T = np.array([model.variant.exact_depth(t, start) for t in range(LENGTH)])
  for depth in range(1, LENGTH + 2):
    logits = jax.jit(model.apply, static_argnames='depth')(params, tokens, depth=depth)
    gap_T = np.abs(logits.logits_BxTxV - exact).max(axis=(0, 2))
    assert_exact_exactly_when(gap_T, depth >= first_T)


def test_declared_depths_of_the_paper():
  assert [VARIANTS['add'].exact_depth(t, 'embedding') for t in range(3)] == [2, 3, 4]
  assert [VARIANTS['add'].exact_depth(t, 'corrected') for t in range(3)] == [1, 2, 3]
  assert [VARIANTS['px'].exact_depth(t, 'embedding') for t in range(3)] == [1, 2, 3]
  assert [VARIANTS['stateless'].exact_depth(t, 'embedding') for t in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
  'correction, window',
  [('add', 0), ('sa', 2)]
  + [pytest.param(name, 0, marks=pytest.mark.slow) for name in ('sa', 'px', 'token_blind')]
  + [pytest.param(name, 2, marks=pytest.mark.slow) for name in ('add', 'px', 'token_blind')],
)
def test_chunks_meet_both_ends(correction, window):
  """c = T is the unroll; any c is exact once K >= c + 1, from the corrected input once K >= c."""
  model, params, tokens, exact = prepared(correction=correction, window=window)
  recurrence = model.recurrence(params)
  e_BxTxC = model.parts(params).embed(tokens)

  @functools.partial(jax.jit, static_argnums=(0, 1, 2))
  def run(chunk, depth, start):
    state = model.decode_state(BATCH, LENGTH).widened(e_BxTxC.dtype)
    lengths_B = jnp.full(BATCH, LENGTH)
    return chunked(recurrence, model.read, state, e_BxTxC, lengths_B, chunk, depth, start)[1]

  exact_hidden = model.sequential_hidden(params, tokens)
  unrolled = jax.jit(lambda depth: model.read(unroll(recurrence, e_BxTxC, depth)), static_argnums=0)
  for depth in (1, 2):
    whole = unrolled(depth)
    assert_close(run(LENGTH, depth, 'embedding'), whole, FLOAT64)
  for chunk in (1, 2):  # 2 does not divide 3: padding must change nothing
    for start, needed in (('embedding', chunk + 1), ('corrected', chunk)):
      gap = np.abs(run(chunk, needed, start) - exact_hidden).max()
      assert gap < 1e-10, (chunk, start)
  if correction == 'add':
    assert np.abs(run(2, 2, 'embedding') - exact_hidden).max() > 1e-6
    assert np.abs(run(2, 1, 'corrected') - exact_hidden).max() > 1e-6


@pytest.mark.parametrize('chunk', (1, 2))
def test_gradients_of_chunks_meet_both_ends(chunk):
  """What holds for values holds for gradients, and no earlier."""
  exact = loss_and_gradient(*problem(driver='sequential'))
  for start, needed in (('embedding', chunk + 1), ('corrected', chunk)):
    for depth in {max(needed - 1, 1), needed}:
      chunks = dict(driver='chunked', chunk=chunk, start=start, depth=depth)
      found = loss_and_gradient(*problem(**chunks))
      if depth == needed:
        assert largest_gap(found, exact) < 1e-10, start
      else:
        assert abs(found[0] - exact[0]) > 1e-6 and largest_gap(found[1], exact[1]) > 1e-4, start


def test_gradient_of_one_chunk_is_that_of_the_unroll():
  for depth in (1, 2):
    one_chunk = dict(driver='chunked', chunk=LENGTH, depth=depth)
    found = loss_and_gradient(*problem(**one_chunk))
    assert largest_gap(found, loss_and_gradient(*problem(depth=depth))) < 1e-12


def plain_loop(model, params, tokens, depth):
  """The definition (crt.md 3), written with Python loops over passes and layers."""
  parts = model.parts(params)
  e_BxTxC = parts.embed(tokens)
  x_BxTxC = e_BxTxC
  for k in range(1, depth + 1):
    z_BxTxC = x_BxTxC
    for n in range(model.config.layers):
      layer = jax.tree.map(lambda a, n=n: a[n], params['layers'])
      z_BxTxC, _ = apply_module(model.block.layer, layer, z_BxTxC)
    if k < depth:
      shifted = jnp.concatenate([jnp.zeros_like(z_BxTxC[:, :1]), z_BxTxC[:, :-1]], axis=1)
      x_BxTxC, _ = parts.inject(shifted, e_BxTxC, x_BxTxC, None, None)
  return model.head(params, z_BxTxC)


def plain_recurrence(model, params, tokens):
  """The definition (crt.md 4): runs the block over the whole prefix at each step."""
  parts = model.parts(params)
  e_BxTxC = parts.embed(tokens)
  state_BxC, inputs, outputs = jnp.zeros_like(e_BxTxC[:, 0]), [], []
  for t in range(tokens.shape[1]):
    x_Bx1xC, _ = parts.inject(state_BxC[:, None], e_BxTxC[:, t : t + 1], None, None, None)
    inputs.append(x_Bx1xC)
    z_BxtxC, _ = parts.block(jnp.concatenate(inputs, axis=1))
    state_BxC = z_BxtxC[:, -1]
    outputs.append(state_BxC)
  return model.head(params, jnp.stack(outputs, axis=1))


@pytest.mark.parametrize('driver, chunk', (('unroll', 0), ('sequential', 0), ('chunked', 2)))
@pytest.mark.parametrize('layers, window', ((1, 2), (2, 0)))
def test_drivers_and_their_gradients_follow_the_definition(driver, chunk, layers, window):
  changes = dict(driver=driver, chunk=chunk, layers=layers, window=window, depth=3)
  loss, ours = loss_and_gradient(*problem(**changes))
  value, gradient = by_definition(driver == 'unroll', layers, window)
  np.testing.assert_allclose(loss, value, rtol=1e-12)
  assert_close(ours, gradient, FLOAT64)


@functools.cache
def by_definition(passes, layers, window):
  """Loss and gradient of three passes, or of the recurrence: chunks of 2 with K = 3 are exact."""
  model, params, tokens = problem(layers=layers, window=window)

  def loss(params):
    if passes:
      logits = plain_loop(model, params, tokens, 3)
    else:
      logits = plain_recurrence(model, params, tokens)
    log_p, targets = jax.nn.log_softmax(logits), jnp.roll(tokens, -1, axis=1)
    return -jnp.mean(jnp.take_along_axis(log_p, targets[..., None], axis=-1))

  return jax.jit(jax.value_and_grad(loss))(params)


def test_scan_over_passes_is_the_unrolled_loop():
  model, params, tokens = problem(layers=2)
  apply = jax.jit(model.apply, static_argnames='depth')
  loop = jax.jit(plain_loop, static_argnums=(0, 3))
  for depth in (1, 3):
    logits = apply(params, tokens, depth=depth).logits_BxTxV
    assert_close(logits, loop(model, params, tokens, depth), FLOAT64)


def test_rows_stop_at_their_length():
  model, params, tokens = problem()
  recurrence, e_BxTxC = model.recurrence(params), model.parts(params).embed(tokens)
  empty = model.decode_state(BATCH, LENGTH).widened(e_BxTxC.dtype)
  state, _ = sequential(recurrence, model.read, empty, e_BxTxC, jnp.array([LENGTH, 0]))
  np.testing.assert_array_equal(state.position_B, [LENGTH, 0])
  np.testing.assert_array_equal(state.recurrent[1], empty.recurrent[1])
  assert np.abs(state.recurrent[0]).max() > 0


def test_entries_behind_the_capacity_are_dropped():
  model, params, tokens = problem()
  state, step = model.decode_state(BATCH, 2), jax.jit(model.step)
  for t in range(LENGTH):
    before = state
    state, _ = step(params, state, tokens[:, t])
  np.testing.assert_array_equal(state.caches['block']['k'], before.caches['block']['k'])
