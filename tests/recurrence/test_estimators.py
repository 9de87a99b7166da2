"""Each estimator has the values of its driver, the gradient it says, and bears transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import crt_jax
from crt_jax.models.corrections import VARIANTS
from crt_jax.recurrence.estimators import implicit, last_passes, truncated
from crt_jax.recurrence.passes import sequential, unroll
from tests.recurrence.scaled import BASE, largest_gap, loss_and_gradient, params_of, tokens_of

LENGTH = 5
SEQUENTIAL = dict(driver='sequential')

pytestmark = pytest.mark.usefixtures('float64')


@functools.cache
def found(**changes):
  model = crt_jax.build(BASE | changes)
  return loss_and_gradient(model, params_of(model), tokens_of(length=LENGTH))


@functools.cache
def influence(length: int) -> np.ndarray:
  """[t, s]: the largest derivative of what the head reads at t by the embedding at s, truncated."""
  model = crt_jax.build(BASE)
  params, tokens = params_of(model), tokens_of(batch=1, length=LENGTH)
  recurrence, e_BxTxC = model.recurrence(params), model.parts(params).embed(tokens)
  loop = truncated(jax.lax.scan, length)

  def hidden(e_BxTxC):
    state = model.training_state(e_BxTxC)
    return sequential(recurrence, model.read, state, e_BxTxC, None, None, loop)[1][0]

  return np.abs(jax.jit(jax.jacrev(hidden))(e_BxTxC)).max(axis=(1, 2, 4))


@pytest.mark.parametrize('length', (1, 2, LENGTH))
def test_truncation_cuts_between_stretches_and_nowhere_else(length):
  t, s = np.indices((LENGTH, LENGTH))
  knows = (s <= t) & (s // length == t // length)
  np.testing.assert_array_equal(influence(length) > 0, knows)


@pytest.mark.parametrize('backward', ('scan', 'replay'))
def test_truncation_changes_no_value(backward):
  exact = found(**SEQUENTIAL)
  cut = found(**SEQUENTIAL, backward=backward, gradient='truncated', gradient_reach=2)
  whole = found(**SEQUENTIAL, backward=backward, gradient='truncated', gradient_reach=LENGTH)
  assert largest_gap(cut[0], exact[0]) < 1e-12 < 1e-3 < largest_gap(cut[1], exact[1])
  assert largest_gap(whole, exact) < 1e-12


def test_truncated_chunks_count_positions():
  chunks = dict(driver='chunked', chunk=2, depth=3, gradient='truncated')
  sequential_cut = found(**SEQUENTIAL, gradient='truncated', gradient_reach=2)
  assert largest_gap(found(**chunks, gradient_reach=2), sequential_cut) < 1e-10


def plain_last_passes(model, params, tokens, depth: int, last: int):
  """The definition: K - k passes on constants, their outputs cut, then k corrections and passes."""

  def corrected(parts, e_BxTxC, z_BxTxC, x_BxTxC):
    shifted = jnp.pad(z_BxTxC, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return parts.inject(shifted, e_BxTxC, x_BxTxC, None, None)[0]

  frozen = model.parts(jax.lax.stop_gradient(params))
  e_BxTxC = x_BxTxC = frozen.embed(tokens)
  z_BxTxC = frozen.block(x_BxTxC)[0]
  for _ in range(depth - last - 1):
    x_BxTxC = corrected(frozen, e_BxTxC, z_BxTxC, x_BxTxC)
    z_BxTxC = frozen.block(x_BxTxC)[0]
  parts = model.parts(params)
  e_BxTxC = parts.embed(tokens)
  for _ in range(last):
    x_BxTxC = corrected(parts, e_BxTxC, z_BxTxC, x_BxTxC)
    z_BxTxC = parts.block(x_BxTxC)[0]
  return z_BxTxC


@pytest.mark.parametrize('last, cumulative', ((1, False), (2, False), (1, True), (2, True)))
def test_last_passes_are_the_definition(last, cumulative):
  model = crt_jax.build(BASE | dict(depth=3, cumulative=cumulative))
  params, tokens = params_of(model), tokens_of(length=LENGTH)
  recurrence = model.recurrence

  def loss(hidden):
    return lambda params: jnp.sum(jnp.sin(hidden(params)))

  def ours(params):
    e_BxTxC = model.parts(params).embed(tokens)
    return last_passes(recurrence(params), e_BxTxC, 3, last).z_BxTxC

  one = jax.jit(jax.value_and_grad(loss(ours)))(params)
  plain = functools.partial(plain_last_passes, model, tokens=tokens, depth=3, last=last)
  other = jax.jit(jax.value_and_grad(loss(lambda params: plain(params))))(params)
  assert largest_gap(one, other) < 1e-12
  assert largest_gap(one[0], loss(lambda p: unrolled(model, p, tokens, 3))(params)) < 1e-12
  assert all(np.any(g) for g in jax.tree.leaves(one[1]['correction']))


def unrolled(model, params, tokens, depth):
  return unroll(model.recurrence(params), model.parts(params).embed(tokens), depth).z_BxTxC


def test_all_last_passes_are_the_whole_gradient():
  whole = found(depth=3, gradient='last_passes', gradient_reach=3)
  assert largest_gap(whole, found(depth=3)) < 1e-14
  part = found(depth=3, gradient='last_passes', gradient_reach=2)
  assert largest_gap(part[0], whole[0]) < 1e-14 < 1e-3 < largest_gap(part[1], whole[1])


@pytest.mark.parametrize('reach', (LENGTH - 1, LENGTH))
def test_implicit_is_exact_from_as_many_reverse_passes_as_positions(reach):
  solved = found(depth=LENGTH + 1, gradient='implicit', gradient_reach=reach)
  exact = found(**SEQUENTIAL)
  assert largest_gap(solved[0], exact[0]) < 1e-10
  gap = largest_gap(solved[1], exact[1])
  assert gap < 1e-10 if reach == LENGTH else gap > 1e-6


BOTH = dict(self_inclusive=True, cumulative=True)
RECIPES = [dict(), dict(start='corrected', window=2), dict(dropout=0.3, correction='sa')]
RECIPES += [
  dict(cumulative=True),
  BOTH | dict(dropout=0.3),
  BOTH | dict(start='corrected', correction='concat'),
]
RECIPES += [dict(correction=name, window=2) for name in VARIANTS if name != 'add']


@pytest.mark.parametrize(
  'recipe',
  [r if 'cumulative' in r else pytest.param(r, marks=pytest.mark.slow) for r in RECIPES],
  ids=lambda recipe: '-'.join(f'{k}={v}' for k, v in recipe.items()) or 'plain',
)
def test_an_estimator_changes_no_value(recipe):
  """Whatever else is configured, dropout and convergence loss included."""
  recipe = dict(convergence_weight=0.3) | recipe
  pairs = [(dict(depth=3), dict(gradient='last_passes', gradient_reach=2))]
  if not (recipe.get('cumulative') or recipe.get('self_inclusive')):
    cut = dict(gradient='truncated', gradient_reach=2)
    pairs += [(dict(driver='chunked', chunk=2, depth=2), cut), (SEQUENTIAL, cut)]
    if not recipe.get('dropout'):
      pairs += [(dict(depth=d), dict(gradient='implicit', gradient_reach=2)) for d in (1, 3)]
  for driver, estimator in pairs:
    assert largest_gap(value(**recipe, **driver, **estimator), value(**recipe, **driver)) < 1e-13


@functools.cache
def value(**changes):
  model = crt_jax.build(BASE | changes)
  tokens = tokens_of(length=LENGTH)
  key = jax.random.key(3) if model.dropout else None
  loss = jax.jit(lambda params, batch: model.loss(params, batch, key=key)[0])
  return loss(params_of(model), dict(tokens=tokens, targets=tokens))


def test_states_between_passes_are_measured_of_the_whole_gradient_alone():
  for changes in (SEQUENTIAL, dict(depth=3, gradient='last_passes', gradient_reach=2)):
    model = crt_jax.build(BASE | changes)
    batch = dict(tokens=tokens_of(), targets=tokens_of())
    with pytest.raises(ValueError, match='has no states between passes .*train.telemetry_every=0'):
      model.loss(params_of(model), batch, probe_R=jnp.zeros(2))


ESTIMATORS = {
  'unroll': dict(depth=3),
  'chunked': dict(driver='chunked', chunk=2, depth=2, window=3),
  'sequential': dict(driver='sequential', window=3),
  'sequential_full': dict(driver='sequential'),
  'segments': dict(driver='sequential', backward='segments'),
  'truncated': dict(driver='sequential', gradient='truncated', gradient_reach=2),
  'last_passes': dict(depth=3, gradient='last_passes', gradient_reach=1),
  'implicit': dict(depth=3, gradient='implicit', gradient_reach=3),
}
SLOW = ('sequential_full', 'segments', 'chunked')
ON_A_SCAN = ('chunked', 'truncated')  # with forward-mode derivatives only there
each_estimator = pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ESTIMATORS]
)


@each_estimator
def test_stacked_seeds(name):
  model = crt_jax.build(BASE | ESTIMATORS[name])
  tokens = tokens_of(length=LENGTH)
  alone = [params_of(model, seed) for seed in (0, 1)]
  batch = dict(tokens=tokens, targets=tokens)
  gradient = jax.jit(jax.grad(lambda params: model.loss(params, batch)[0]))
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *alone)
  together = jax.jit(jax.vmap(jax.grad(lambda params: model.loss(params, batch)[0])))(stacked)
  for index, params in enumerate(alone):
    one = jax.tree.map(lambda a, index=index: a[index], together)
    assert largest_gap(one, gradient(params)) < 1e-10
  losses = jax.vmap(lambda params: model.loss(params, batch)[0])
  summed = jax.jit(jax.grad(lambda stacked: jnp.sum(losses(stacked))))(stacked)
  assert largest_gap(summed, together) < 1e-10


@each_estimator
def test_rows_over_eight_devices(name):
  model = crt_jax.build(BASE | ESTIMATORS[name])
  params, tokens = params_of(model), tokens_of(batch=8, length=LENGTH)
  expected = loss_and_gradient(model, params, tokens)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec('data')))
  whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  assert largest_gap(loss_and_gradient(model, whole, rows), expected) < 1e-12


@pytest.mark.parametrize(
  'name', ('unroll', 'last_passes', *(pytest.param(n, marks=pytest.mark.slow) for n in ON_A_SCAN))
)
def test_forward_mode_agrees_with_the_gradient(name):
  changes = dict(backward='scan') if name in ON_A_SCAN else {}
  model = crt_jax.build(BASE | ESTIMATORS[name] | changes)
  params, direction = params_of(model), params_of(model, seed=1)
  batch = dict(tokens=tokens_of(length=LENGTH), targets=tokens_of(length=LENGTH))
  loss = lambda params: model.loss(params, batch)[0]  # noqa: E731
  _, tangent = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,)))(params, direction)
  gradient = jax.jit(jax.grad(loss))(params)
  projected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
  np.testing.assert_allclose(tangent, projected, rtol=1e-9)


def test_implicit_remembers_one_pass():
  """Its memory does not grow with the number of passes."""
  model = crt_jax.build(BASE)
  params = jax.eval_shape(model.init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((4, 32), jnp.int32)

  def bytes_of(depth, solver):
    def loss(params, tokens):
      e_BxTxC = model.parts(params).embed(tokens)
      return jnp.sum(solver(model.recurrence(params), e_BxTxC, depth).z_BxTxC)

    compiled = jax.jit(jax.grad(loss)).lower(params, rows).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  solver = functools.partial(implicit, reverse=3)
  assert bytes_of(9, solver) < 1.1 * bytes_of(2, solver)
  assert bytes_of(9, unroll) > 2 * bytes_of(9, solver)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(gradient='truncate'), "did you mean 'truncated'"),
    (dict(backward='replays'), "did you mean 'replay'"),
    (dict(gradient_reach=2), "must be 0 for model.gradient='full'"),
    (dict(SEQUENTIAL, gradient='truncated'), r'gradient_reach=0 must be at least 1 \(positions\)'),
    (
      dict(gradient='truncated', gradient_reach=2),
      "driver='unroll' must be one of",
    ),
    (dict(SEQUENTIAL, gradient='implicit', gradient_reach=2), "driver='sequential' must be one of"),
    (dict(gradient='last_passes', gradient_reach=6), 'exceeds the 5 passes; use 5'),
    (dict(gradient='last_passes', gradient_reach=3, depth_min=2), 'exceeds the 2 passes'),
    (dict(gradient='implicit', gradient_reach=2, dropout=0.1), 'needs model.dropout=0'),
    (
      dict(gradient='last_passes', gradient_reach=1, cumulative=True, correction='block_head'),
      "leaves the embedding no gradient .* use model.gradient='full'",
    ),
    (
      dict(gradient='implicit', gradient_reach=2, cumulative=True),
      'model.cumulative=True does not',
    ),
    (
      dict(driver='chunked', chunk=4, gradient='truncated', gradient_reach=6),
      'multiple of model.chunk=4; use 4',
    ),
    (dict(driver='sequential', self_inclusive=True), 'needs the sequential form'),
  ],
)
def test_mistakes_name_the_field_and_the_fix(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    crt_jax.build(BASE | changes)
  assert '\n' not in str(caught.value)


def test_what_does_not_fit_the_length_is_refused_or_said():
  chunked = crt_jax.build(BASE | dict(driver='chunked', chunk=4))
  with pytest.raises(ValueError, match='model.chunk=4 exceeds the 3 positions; use at most 3'):
    chunked.check_length(3)
  [remark] = chunked.check_length(6)
  assert 'does not divide the 6 positions: the last chunk is padded by 2' in remark
  assert chunked.check_length(8) == []
  cut = crt_jax.build(BASE | dict(SEQUENTIAL, gradient='truncated', gradient_reach=9))
  with pytest.raises(ValueError, match='model.gradient_reach=9 exceeds the 8 positions'):
    cut.check_length(8)
