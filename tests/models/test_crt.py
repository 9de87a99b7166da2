"""What is particular to the CRT: its limits, its losses, its dropout, its depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax.models.corrections import VARIANTS

BASE = dict(name='crt', vocab_size=11, width=8, heads=2, layers=2, rotary='integer_reversed')
BATCH, LENGTH = 2, 5
# Where F(LN(s + e)) is all that the correction adds, a zeroed F leaves a plain transformer.
ONLY_ADDS = ('add', 'stateless', 'token_blind', 'concat', 'delta_ffn', 'delta_ffn_add', 'sa')


@functools.cache
def prepared(**changes):
  model = crt_jax.build(BASE | changes)
  params = jax.jit(model.init)(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, 11)
  return model, params, tokens


def transformer_logits(params, tokens):
  model = crt_jax.build({k: v for k, v in BASE.items() if k != 'name'} | dict(name='transformer'))
  return jax.jit(model.apply)(
    {k: v for k, v in params.items() if k != 'correction'}, tokens
  ).logits_BxTxV


def apply(model, params, tokens, depth):
  return jax.jit(model.apply, static_argnames='depth')(params, tokens, depth=depth).logits_BxTxV


@pytest.mark.parametrize('correction', [name for name in VARIANTS if name != 'px'])
def test_one_pass_is_the_plain_transformer(correction):
  model, params, tokens = prepared(correction=correction)
  logits = apply(model, params, tokens, 1)
  np.testing.assert_allclose(logits, transformer_logits(params, tokens), rtol=1e-5, atol=1e-6)
  assert np.abs(apply(model, params, tokens, 2) - logits).max() > 1e-4


def test_one_pass_of_px_is_not_the_plain_transformer():
  model, params, tokens = prepared(correction='px')
  gap = apply(model, params, tokens, 1) - transformer_logits(params, tokens)
  assert np.abs(gap).max() > 1e-3


@pytest.mark.parametrize('correction', ONLY_ADDS)
def test_zeroed_second_correction_layer_is_the_transformer_at_every_depth(correction):
  model, params, tokens = prepared(correction=correction)
  down = jax.tree.map(jnp.zeros_like, params['correction']['feed_forward']['down'])
  network = params['correction'] | dict(
    feed_forward=params['correction']['feed_forward'] | dict(down=down)
  )
  params = params | dict(correction=network)
  plain = transformer_logits(params, tokens)
  for depth in (1, 2, 4):
    np.testing.assert_allclose(apply(model, params, tokens, depth), plain, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(model.sequential(params, tokens), plain, rtol=1e-5, atol=1e-6)


def test_cumulative_and_self_inclusive_block_head_is_a_universal_transformer():
  """x <- x + (z - x) = z: the block applied K times over (crt.md 9)."""
  model, params, tokens = prepared(
    correction='block_head', cumulative=True, self_inclusive=True, layers=1
  )
  parts = model.parts(params)
  x_BxTxC = parts.embed(tokens)
  for _ in range(3):
    x_BxTxC, _ = parts.block(x_BxTxC)
  expected = model.head(params, x_BxTxC)
  np.testing.assert_allclose(apply(model, params, tokens, 3), expected, rtol=1e-4, atol=1e-5)


def test_cumulative_shows_from_the_third_pass_on():
  model, params, tokens = prepared()
  other = prepared(cumulative=True)[0]
  for depth, differs in ((2, False), (3, True)):
    gap = np.abs(apply(model, params, tokens, depth) - apply(other, params, tokens, depth)).max()
    assert (gap > 1e-3) == differs


def test_self_inclusive_reads_its_own_position():
  model, params, tokens = prepared(self_inclusive=True)
  other = prepared()[0]
  gap = apply(model, params, tokens, 2) - apply(other, params, tokens, 2)
  assert np.abs(gap).max() > 1e-3
  parts, e_BxTxC = model.parts(params), model.parts(params).embed(tokens)
  z_BxTxC, _ = parts.block(e_BxTxC)
  x_BxTxC, _ = parts.inject(z_BxTxC, e_BxTxC, e_BxTxC, None, None)
  expected = model.head(params, parts.block(x_BxTxC)[0])
  np.testing.assert_allclose(apply(model, params, tokens, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('field', ('cumulative', 'self_inclusive'))
def test_no_sequential_form_is_refused_by_name(field):
  model, params, tokens = prepared(**{field: True})
  with pytest.raises(ValueError, match=f'model.{field}=True'):
    model.sequential(params, tokens)
  with pytest.raises(ValueError, match=f'model.{field}=True'):
    model.decode_state(1, 4)
  with pytest.raises(ValueError, match=f"driver='sequential'.*model.{field}=True"):
    crt_jax.build(BASE | {field: True, 'driver': 'sequential'})


def test_convergence_loss_and_its_stop_gradient():
  """w * mean((x^(K+1) - stop_gradient(x^(K)))^2), at a weight where it outweighs the rest."""
  weight = 50.0
  model, params, tokens = prepared(convergence_weight=weight, depth=2, layers=1)
  batch = dict(tokens=tokens, targets=tokens)

  def by_hand(params, frozen):
    parts = model.parts(params)
    e = parts.embed(tokens)
    shift = lambda z: jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :-1]], axis=1)  # noqa: E731
    z1, _ = parts.block(e)
    x2, _ = parts.inject(shift(z1), e, e, None, None)
    z2, _ = parts.block(x2)
    x3, _ = parts.inject(shift(z2), e, x2, None, None)
    constant = x2 if frozen is None else frozen
    loss = weight * jnp.mean((x3 - constant) ** 2)
    log_p = jax.nn.log_softmax(model.head(params, z2))
    return loss - jnp.mean(jnp.take_along_axis(log_p, tokens[..., None], -1)), (x2, loss)

  _, (x2, convergence) = by_hand(params, None)
  (total, _), expected = jax.value_and_grad(by_hand, has_aux=True)(params, x2)
  (loss, metrics), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, batch)
  np.testing.assert_allclose(metrics['convergence'], convergence, rtol=1e-5)
  np.testing.assert_allclose(loss, total, rtol=1e-5)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, gradient, expected)
  wrong, _ = jax.grad(by_hand, has_aux=True)(params, None)
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), wrong, expected)
  assert max(jax.tree.leaves(difference)) > 1e-2


def test_convergence_at_one_pass_compares_with_the_embedding():
  model, params, tokens = prepared(convergence_weight=2.0)
  parts = model.parts(params)
  e_BxTxC = parts.embed(tokens)
  z_BxTxC, _ = parts.block(e_BxTxC)
  shifted = jnp.pad(z_BxTxC, ((0, 0), (1, 0), (0, 0)))[:, :-1]
  gap = parts.inject(shifted, e_BxTxC, e_BxTxC, None, None)[0] - e_BxTxC
  losses = model.hidden(params, tokens, depth=1).losses
  np.testing.assert_allclose(losses['convergence'], 2 * jnp.mean(gap**2), rtol=1e-5)


def test_dropout_is_drawn_anew_in_each_pass_but_once_for_the_embedding():
  """Seen by recording what the block and the correction are given in each pass."""
  model = crt_jax.build(BASE | dict(dropout=0.5, layers=1))
  params, tokens = prepared(layers=1)[1:]
  parts = model.parts(params)
  seen = []

  def block(x_BxTxC, past, key):
    jax.debug.callback(lambda k: seen.append(tuple(k)), jax.random.key_data(key), ordered=True)
    return parts.block(x_BxTxC, past, key)

  recurrence = model.recurrence(params)._replace(block=block)
  from crt_jax.recurrence.context import unroll

  e_BxTxC = parts.embed(tokens, jax.random.key(5))
  assert 0.2 < np.mean(np.asarray(e_BxTxC) == 0) < 0.8
  done = unroll(recurrence, e_BxTxC, 4, key=jax.random.key(3))
  jax.effects_barrier()
  assert len(set(seen)) == 4
  ones = jnp.ones((1, 64, 8))
  masks = [np.asarray(parts.inject(ones, ones, ones, jax.random.key(k), None)[0]) for k in (0, 1)]
  assert (masks[0] != masks[1]).any()
  # The embedding's zeros are the same in the input of the last pass: x - correction = e.
  again = unroll(recurrence, e_BxTxC, 4, key=jax.random.key(3))
  np.testing.assert_array_equal(done.x_BxTxC, again.x_BxTxC)


def test_baseline_has_no_dropout_on_the_embedding():
  """The only structural difference outside the correction (crt.md 2.1)."""
  fields = {k: v for k, v in BASE.items() if k != 'name'}
  model = crt_jax.build(fields | dict(name='transformer', dropout=0.5))
  params, tokens = prepared()[1:]
  e_BxTxC = model.parts(params).embed(tokens, jax.random.key(0))
  np.testing.assert_array_equal(e_BxTxC, params['embedding']['weight'][tokens])


def test_depth_is_drawn_from_its_range_as_a_function_of_seed_and_step():
  model = crt_jax.build(BASE | dict(depth=5, depth_min=2))
  drawn = [model.depth_at(7, step) for step in range(400)]
  assert drawn == [model.depth_at(7, step) for step in range(400)]
  assert drawn != [model.depth_at(8, step) for step in range(400)]
  counts = np.bincount(drawn, minlength=6)[2:]
  assert counts.sum() == 400 and counts.min() > 70
  assert model.depths() == (2, 3, 4, 5)
  assert crt_jax.build(BASE).depths() == (5,)


def test_depth_schedule():
  model = crt_jax.build(BASE | dict(depth=4, depth_schedule='10:1, 20:2-3'))
  assert [model.depth_at(0, step) for step in (0, 9, 10, 19)] == [4, 4, 1, 1]
  assert {model.depth_at(0, step) for step in range(20, 60)} == {2, 3}
  assert model.depths() == (1, 2, 3, 4)
  assert crt_jax.build(BASE | dict(depth_schedule='0:1,5:2')).depths() == (1, 2)


@pytest.mark.parametrize('schedule', ('5', '5:x', '5:3-2', '5:0', '9:1,5:2'))
def test_bad_depth_schedule_names_the_entry(schedule):
  with pytest.raises(ValueError, match='model.depth_schedule entry'):
    crt_jax.build(BASE | dict(depth_schedule=schedule))


def test_telemetry_shows_how_the_passes_settle():
  model, params, tokens = prepared()
  residual_K = model.hidden(params, tokens, depth=6, telemetry=True).telemetry['residual']
  assert residual_K.shape == (5,)
  assert residual_K[-1] < residual_K[1] < 1
