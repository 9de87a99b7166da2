"""One suite over every model: what models/base.py promises holds for each of them."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import crt_jax.models.loss
from tests.close import FLOAT32, FLOAT64, assert_close
from tests.contract.models import (
  BATCH,
  CONFIGS,
  LENGTH,
  exact_depth,
  model_of,
  params_of,
  tokens_of,
)

FAST = (
  'crt',
  'crt_sa',
  'crt_cart',
  'crt_gpt2',
  'odd_state',
  'cart',
  'cart_per_loop',
  'roformer',
  'llama',
)
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
each_model = pytest.mark.parametrize('name', NAMES)
# What depends on the shared code rather than on a variant runs over one model of each family.
SLOW_FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in ('crt_cart', 'odd_state')]
each_family = pytest.mark.parametrize('name', ('crt', 'cart', 'roformer', *SLOW_FAMILIES))


@functools.cache
def prepared(name):
  """Model, parameters, tokens and the exact logits of its sequential form."""
  model = model_of(name)
  params, tokens = params_of(model), tokens_of(model)
  return model, params, tokens, model.sequential(params, tokens)


def in_float64(name):
  """The same model, parameters and tokens for laws that hold to the last digit."""
  model, params, tokens, _ = prepared(name)
  return model, jax.tree.map(lambda a: np.asarray(a, 'float64'), params), tokens


@functools.cache
def jitted(model, method: str, **static):
  """A method of a model, compiled once for all tests."""
  return jax.jit(functools.partial(getattr(model, method), **static))


@functools.cache
def lowered_gradient(name, **changes):
  """The gradient of the loss in float64: its jaxpr, its lowered text, and its value."""
  _, params, tokens = in_float64(name)
  model = model_of(name, **changes)
  traced = jax.jit(jax.grad(lambda p: model.loss(p, batch_of(tokens))[0])).trace(params)
  lowered = traced.lower()
  return str(traced.jaxpr), lowered.as_text(), lowered.compile()(params)


def batch_of(tokens):
  return dict(tokens=tokens, targets=jnp.roll(tokens, -1, axis=1).at[:, -1].set(-1))


@each_model
def test_axes_name_every_dimension_of_every_parameter(name):
  model, params, _, _ = prepared(name)
  axes = model.axes()
  assert jax.tree.structure(axes) == jax.tree.structure(params)
  jax.tree.map(lambda spec, a: np.testing.assert_equal(len(spec), a.ndim), axes, params)
  names = {part for spec in jax.tree.leaves(axes) for part in spec}
  assert None not in names
  assert {'vocab', 'width', 'heads', 'feed_forward'} <= names


@each_family
def test_models_are_equal_and_hashable_by_configuration(name):
  assert model_of(name) == model_of(name)
  assert hash(model_of(name)) == hash(model_of(name))
  assert model_of(name, vocab_size=24) != model_of(name)


@each_model
def test_params_are_a_plain_float32_dict(name):
  _, params, _, _ = prepared(name)
  assert type(params) is dict
  assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@each_model
def test_apply_is_head_of_hidden(name):
  model, params, tokens, _ = prepared(name)
  hidden = jitted(model, 'hidden')(params, tokens)
  assert hidden.hidden_BxTxC.shape == (BATCH, LENGTH, model.config.width)
  logits = model.head(params, hidden.hidden_BxTxC)
  assert logits.shape == (BATCH, LENGTH, model.config.vocab_size)
  assert logits.dtype == jnp.float32
  applied = jitted(model, 'apply')(params, tokens).logits_BxTxV
  assert_close(applied, logits, FLOAT32)


@each_family
def test_loss_is_the_mean_over_counted_targets(name):
  model, params, tokens, _ = prepared(name)
  batch = batch_of(tokens)
  batch['targets'] = batch['targets'].at[0, 2].set(-1)
  total, metrics = jax.jit(model.loss)(params, batch)
  log_p = jax.nn.log_softmax(jitted(model, 'apply')(params, tokens).logits_BxTxV)
  picked = jnp.take_along_axis(log_p, jnp.maximum(batch['targets'], 0)[..., None], -1)[..., 0]
  counted = np.asarray(batch['targets']) >= 0
  assert metrics['targets'] == counted.sum() == BATCH * (LENGTH - 1) - 1
  expected = -np.asarray(picked)[counted].mean()
  np.testing.assert_allclose(metrics['cross_entropy'], expected, rtol=1e-5)
  np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_chunks_of_the_loss_do_not_change_its_gradient(monkeypatch, float64):
  model, params, tokens = in_float64('roformer')
  gradient = lambda p: jax.jit(jax.grad(lambda p: model.loss(p, batch_of(tokens))[0]))(p)  # noqa: E731
  whole = gradient(params)
  monkeypatch.setattr(crt_jax.models.loss, 'MIB', 8)  # 64 of them
  chunked = gradient(params)
  assert_close(chunked, whole, FLOAT64)


@each_model
def test_parallel_passes_reach_the_sequential_form(name):
  model, params, tokens, exact = prepared(name)
  parallel = jitted(model, 'apply', depth=exact_depth(model, LENGTH))(params, tokens).logits_BxTxV
  assert_close(parallel, exact, FLOAT32)


@each_model
def test_step_by_step_is_sequential(name):
  model, params, tokens, exact = prepared(name)
  state = model.decode_state(BATCH, LENGTH)
  step = jitted(model, 'step')
  for t in range(LENGTH):
    state, logits_BxV = step(params, state, tokens[:, t])
    assert_close(logits_BxV, exact[:, t], FLOAT32)
  np.testing.assert_array_equal(state.position_B, [LENGTH] * BATCH)


@each_model
@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(position=st.integers(0, LENGTH - 1), shift=st.integers(1, 22))
def test_no_logits_before_a_changed_token_change(name, position, shift):
  model, params, tokens, _ = prepared(name)
  changed = tokens.at[:, position].set((tokens[:, position] + shift) % model.config.vocab_size)
  before = jitted(model, 'apply')(params, tokens).logits_BxTxV
  after = jitted(model, 'apply')(params, changed).logits_BxTxV
  np.testing.assert_array_equal(before[:, :position], after[:, :position])
  assert not np.array_equal(before[:, position], after[:, position])


@pytest.mark.parametrize('name', ('crt', 'crt_sa', 'cart'))
def test_a_window_hides_what_lies_further_back(name):
  model = model_of(name, window=2)
  params, tokens = prepared(name)[1:3]
  seen = model.sequential(params, tokens)
  assert_close(
    jitted(model, 'apply', depth=exact_depth(model, LENGTH))(params, tokens).logits_BxTxV,
    seen,
    FLOAT32,
  )
  full = model_of(name, window=0).sequential(params, tokens)
  assert np.abs(seen[:, -1] - full[:, -1]).max() > 1e-3
  assert_close(seen[:, :2], full[:, :2], FLOAT32)


@each_family
def test_dropout_follows_the_key_alone(name):
  model = model_of(name, dropout=0.3)
  params, tokens = prepared(name)[1:3]
  loss = jax.jit(lambda key: model.loss(params, batch_of(tokens), key=key)[0])
  assert loss(jax.random.key(1)) == loss(jax.random.key(1))
  assert loss(jax.random.key(1)) != loss(jax.random.key(2))
  without = jax.jit(prepared(name)[0].loss)(params, batch_of(tokens))[0]
  np.testing.assert_allclose(jax.jit(model.loss)(params, batch_of(tokens))[0], without, rtol=1e-6)
  assert loss(jax.random.key(1)) != without


@each_family
def test_gradients_agree_with_forward_mode(name, float64):
  model, params, tokens = in_float64(name)
  loss = lambda p: model.loss(p, batch_of(tokens))[0]  # noqa: E731
  direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
  _, tangent = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,)))(params, direction)
  gradient = lowered_gradient(name)[-1]
  projected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
  np.testing.assert_allclose(tangent, projected, rtol=1e-9)


@each_family
def test_vmap_over_stacked_seeds(name):
  model, _, tokens, _ = prepared(name)
  alone = [params_of(model, seed) for seed in (0, 1)]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *alone)
  loss = jax.jit(lambda p: model.loss(p, batch_of(tokens))[0])
  losses = jax.jit(jax.vmap(loss))(stacked)
  for params, expected in zip(alone, losses, strict=True):
    np.testing.assert_allclose(loss(params), expected, rtol=1e-5)


@each_family
def test_float64_parameters_compute_in_float64(name):
  with jax.enable_x64(True):
    model = model_of(name)
    params = params_of(model, dtype='float64')
    tokens = tokens_of(model)
    exact = model.sequential(params, tokens)
    assert exact.dtype == jnp.float64
    parallel = jitted(model, 'apply', depth=exact_depth(model, LENGTH))(params, tokens).logits_BxTxV
    assert_close(parallel, exact, FLOAT64)
    state, logits_BxV = model.prefill(params, model.decode_state(BATCH, LENGTH), tokens)
    assert_close(logits_BxV, exact[:, -1], FLOAT64)
    asked = model_of(name, dtype='float64')
    assert {a.dtype for a in jax.tree.leaves(jax.eval_shape(asked.init, jax.random.key(0)))} == {
      exact.dtype
    }
    assert_close(asked.sequential(params, tokens), exact, FLOAT64)


@each_family
def test_bfloat16_keeps_the_residual_stream_in_float32(name):
  model = model_of(name, dtype='bfloat16')
  # Half as large, so that seven positions of recurrence do not amplify round-off into chaos.
  params, tokens = jax.tree.map(lambda a: a / 2, prepared(name)[1]), prepared(name)[2]
  exact = model_of(name).sequential(params, tokens)
  assert model.hidden(params, tokens).hidden_BxTxC.dtype == jnp.float32
  caches = {a.dtype for a in jax.tree.leaves(model.decode_state(1, 4).caches)}
  assert caches == {jnp.dtype('bfloat16')} or name == 'odd_state'  # whose state is no cache
  logits = model.sequential(params, tokens)
  assert logits.dtype == jnp.float32
  # bfloat16 keeps 8 bits: 0.4 % of the largest logit, several times over.
  assert 0 < np.abs(logits - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize(
  'name, remat',
  (('crt', 'layer'), ('crt', 'pass'), ('crt', 'dots'), ('cart', 'layer'), ('roformer', 'layer')),
)
def test_rematerialisation_changes_no_gradient(name, remat, float64):
  jaxpr, _, gradient = lowered_gradient(name)
  other_jaxpr, _, other_gradient = lowered_gradient(name, remat=remat)
  assert_close(gradient, other_gradient, FLOAT64)
  assert other_jaxpr.count('remat') > jaxpr.count('remat')


@pytest.mark.parametrize('name', ('crt', 'cart', 'roformer'))
@pytest.mark.parametrize('remat', ('none', 'layer', 'dots'))
def test_scans_written_out_change_no_gradient(name, remat, float64):
  _, scanned, gradient = lowered_gradient(name)
  _, written_out, other_gradient = lowered_gradient(name, remat=remat, unroll_scans='yes')
  assert_close(gradient, other_gradient, FLOAT64)
  assert 'while' in scanned and 'while' not in written_out
  # What keeps the compiler from storing what it was told to compute again.
  assert ('optimization_barrier' in written_out) == (remat == 'layer')


@each_family
def test_sharded_over_eight_devices(name):
  """A width divided over devices: the same logits, and specs that really divide something."""
  model, params, tokens, exact = prepared(name)
  mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def shard(spec, a):
    last_width = max((i for i, n in enumerate(spec) if n == 'width'), default=None)
    physical = ['fsdp' if i == last_width else None for i in range(a.ndim)]
    return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*physical)))

  sharded = jax.tree.map(shard, model.axes(), params)
  divided = [a for a in jax.tree.leaves(sharded) if not a.sharding.is_fully_replicated]
  assert len(divided) > len(jax.tree.leaves(sharded)) / 2
  tokens = jax.device_put(jnp.tile(tokens, (2, 1)), NamedSharding(mesh, PartitionSpec('data')))
  assert_close(model.sequential(sharded, tokens)[:BATCH], exact, FLOAT32)


def test_decay_spares_what_the_loss_never_reads():
  """The parameters with no gradient at all are those that decayed() leaves out."""
  cases = {
    'cart': dict(blend=False, gate=False, loop_code=False),
    'crt': dict(depth=1),
    'crt_cart': dict(blend=False, gate=False, loop_code=False),
    'crt_px': dict(depth=1),
  }
  for name, changes in cases.items():
    model = model_of(name, **changes)
    params, tokens = params_of(model), tokens_of(model)
    gradient = jax.jit(jax.grad(lambda p, m=model, t=tokens: m.loss(p, batch_of(t))[0]))(params)
    moves = jax.tree.map(lambda g: bool(np.any(g)), gradient)
    assert moves == model.decayed(), name
    assert all(jax.tree.leaves(moves)) == (name == 'crt_px')


@each_family
def test_depth_outside_its_range_is_refused_by_name(name):
  model, params, tokens, _ = prepared(name)
  for depth in (0, -1):
    with pytest.raises(ValueError, match=f'depth={depth}'):
      model.hidden(params, tokens, depth=depth)
  if model.config.name == 'cart':
    state = model.decode_state(BATCH, LENGTH, depth=2)
    assert state.depth == 2
    _, logits_BxV = model.prefill(params, state, tokens)
    expected = jitted(model, 'apply', depth=2)(params, tokens).logits_BxTxV[:, -1]
    assert_close(logits_BxV, expected, FLOAT32)
  else:
    with pytest.raises(ValueError, match='depth=4'):
      model.decode_state(BATCH, LENGTH, depth=4)


@each_family
def test_each_pass_is_what_apply_gives_at_its_depth(name):
  model, params, tokens, _ = prepared(name)
  if model.passes is None:
    with pytest.raises(ValueError, match="'transformer' has no recurrent passes; use apply"):
      model.each_pass(params, tokens)
    with pytest.raises(ValueError, match='has no recurrence to measure'):
      model.hidden(params, tokens, telemetry=True)
    return
  with pytest.raises(ValueError, match='outside the vocabulary'):
    model.each_pass(params, tokens + model.config.vocab_size)
  outputs = model.each_pass(params, tokens)
  assert len(outputs) == model.resolve_depth(None) > 1
  expected = jitted(model, 'apply')(params, tokens)
  assert_close(outputs[-1].logits_BxTxV, expected.logits_BxTxV, FLOAT32)
  assert_close(outputs[-1].hidden.hidden_BxTxC, expected.hidden.hidden_BxTxC, FLOAT32)
  assert np.abs(outputs[0].logits_BxTxV - outputs[-1].logits_BxTxV).max() > 1e-3
