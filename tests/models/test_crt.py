"""What is particular to the CRT: its limits, its losses, its dropout, its depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crt_jax
from crt_jax.models.corrections import VARIANTS
from crt_jax.recurrence.passes import chunked, unroll
from tests.close import FLOAT64, assert_close, gap
from tests.contract.models import params_of, tokens_of

pytestmark = pytest.mark.usefixtures('float64')

BASE = dict(name='crt', vocab_size=11, width=8, heads=2, layers=2, rotary='integer_reversed')
BATCH, LENGTH = 2, 5
# Where F(LN(s + e)) is all that the correction adds, a zeroed F leaves a plain transformer.
ONLY_ADDS = ('add', 'stateless', 'token_blind', 'concat', 'delta_ffn', 'delta_ffn_add', 'sa')


@functools.cache
def prepared(**changes):
  model = crt_jax.build(BASE | changes)
  return model, params_of(model, dtype='float64'), tokens_of(model, batch=BATCH, length=LENGTH)


@functools.cache
def compiled_apply(model):
  """One per model, since a fresh jit would compile again."""
  return jax.jit(model.apply, static_argnames='depth')


def transformer_logits(params, tokens):
  model = crt_jax.build({k: v for k, v in BASE.items() if k != 'name'} | dict(name='transformer'))
  params = {k: v for k, v in params.items() if k != 'correction'}
  return compiled_apply(model)(params, tokens).logits_BxTxV


def apply(model, params, tokens, depth):
  return compiled_apply(model)(params, tokens, depth=depth).logits_BxTxV


def without_correction(params):
  """The same parameters with F's second layer, weight and bias, set to zero."""
  feed_forward = params['correction']['feed_forward']
  feed_forward = feed_forward | dict(down=jax.tree.map(np.zeros_like, feed_forward['down']))
  return params | dict(correction=params['correction'] | dict(feed_forward=feed_forward))


@pytest.mark.parametrize('correction', [name for name in VARIANTS if name != 'px'])
def test_one_pass_is_the_plain_transformer(correction):
  model, params, tokens = prepared(correction=correction)
  logits = apply(model, params, tokens, 1)
  assert_close(logits, transformer_logits(params, tokens), FLOAT64)
  assert np.abs(apply(model, params, tokens, 2) - logits).max() > 1e-4


def test_one_pass_of_px_is_not_the_plain_transformer():
  model, params, tokens = prepared(correction='px')
  gap = apply(model, params, tokens, 1) - transformer_logits(params, tokens)
  assert np.abs(gap).max() > 1e-3


@pytest.mark.parametrize('correction', ONLY_ADDS)
def test_zeroed_second_correction_layer_is_the_transformer_at_every_depth(correction):
  model, params, tokens = prepared(correction=correction)
  params = without_correction(params)
  plain = transformer_logits(params, tokens)
  for depth in (2, 4):
    assert_close(apply(model, params, tokens, depth), plain, FLOAT64)
  assert_close(model.sequential(params, tokens), plain, FLOAT64)


def test_cumulative_and_self_inclusive_block_head_is_a_universal_transformer():
  """x <- x + (z - x) = z: the block applied K times over (crt.md 9)."""
  model, params, tokens = prepared(
    correction='block_head', cumulative=True, self_inclusive=True, layers=1
  )

  @jax.jit
  def by_hand(params):
    parts = model.parts(params)
    x_BxTxC = parts.embed(tokens)
    for _ in range(3):
      x_BxTxC, _ = parts.block(x_BxTxC)
    return model.head(params, x_BxTxC)

  expected = by_hand(params)
  assert_close(apply(model, params, tokens, 3), expected, FLOAT64)


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

  @jax.jit
  def by_hand(params):
    parts = model.parts(params)
    e_BxTxC = parts.embed(tokens)
    z_BxTxC, _ = parts.block(e_BxTxC)
    x_BxTxC, _ = parts.inject(z_BxTxC, e_BxTxC, e_BxTxC, None, None)
    return model.head(params, parts.block(x_BxTxC)[0])

  expected = by_hand(params)
  assert_close(apply(model, params, tokens, 2), expected, FLOAT64)


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

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def by_hand(params, frozen, is_frozen):
    parts = model.parts(params)
    e = parts.embed(tokens)
    shift = lambda z: jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :-1]], axis=1)  # noqa: E731
    z1, _ = parts.block(e)
    x2, _ = parts.inject(shift(z1), e, e, None, None)
    z2, _ = parts.block(x2)
    x3, _ = parts.inject(shift(z2), e, x2, None, None)
    loss = weight * jnp.mean((x3 - jnp.where(is_frozen, frozen, x2)) ** 2)
    log_p = jax.nn.log_softmax(model.head(params, z2))
    return loss - jnp.mean(jnp.take_along_axis(log_p, tokens[..., None], -1)), (x2, loss)

  unused = np.zeros((BATCH, LENGTH, 8))
  (_, (x2, convergence)), wrong = by_hand(params, unused, False)
  (total, _), expected = by_hand(params, x2, True)
  (loss, metrics), gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, batch)
  assert_close(metrics['convergence'], convergence, FLOAT64)
  assert_close(loss, total, FLOAT64)
  assert_close(gradient, expected, FLOAT64)
  assert gap(wrong, expected) > 1e-2


def test_convergence_at_one_pass_compares_with_the_embedding():
  model, params, tokens = prepared(convergence_weight=2.0)

  @jax.jit
  def by_hand(params):
    parts = model.parts(params)
    e_BxTxC = parts.embed(tokens)
    z_BxTxC, _ = parts.block(e_BxTxC)
    shifted = jnp.pad(z_BxTxC, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    gap = parts.inject(shifted, e_BxTxC, e_BxTxC, None, None)[0] - e_BxTxC
    return 2 * jnp.mean(gap**2)

  losses = jax.jit(functools.partial(model.hidden, depth=1))(params, tokens).losses
  assert_close(losses['convergence'], by_hand(params), FLOAT64)


# Driver: positions of a chunk, passes over each, calls of block and summary, and of inject, which
# besides makes the first input of each chunk from a summary of zero.
CALLS = dict(unroll=(LENGTH, 4, 4, 5), chunked=(2, 2, 6, 9), sequential=(1, 1, 5, 10))


@pytest.mark.parametrize('driver', CALLS)
def test_block_and_correction_draw_dropout_anew_in_each_pass(driver):
  model, params, tokens = prepared(layers=1)
  chunk, depth, passes, injections = CALLS[driver]
  keys = dict(block=[], summary=[], inject=[])

  def noting(name, function):
    def noted(*args):
      key = args[3] if name == 'inject' else args[2] if len(args) > 2 else None
      if key is None:  # the shape of a summary is asked for
        return function(*args)
      note = lambda k: keys[name].append(tuple(np.asarray(k).tolist()))  # noqa: E731
      jax.debug.callback(note, jax.random.key_data(key), ordered=True)
      return function(*args)

    return noted

  @jax.jit
  def run(params, key):
    recurrence = model.recurrence(params)
    noted = {name: noting(name, getattr(recurrence, name)) for name in keys}
    e_BxTxC = model.parts(params).embed(tokens)
    if driver == 'unroll':
      return unroll(recurrence._replace(**noted), e_BxTxC, depth, key=key).z_BxTxC
    state = model.decode_state(BATCH, 6).widened(e_BxTxC.dtype)
    start = 'embedding' if driver == 'chunked' else 'corrected'
    arguments = (recurrence._replace(**noted), model.read, state, e_BxTxC, None)
    return chunked(*arguments, chunk, depth, start, key)[1]

  run(params, jax.random.key(3)).block_until_ready()
  jax.effects_barrier()
  assert {name: len(found) for name, found in keys.items()} == dict(
    block=passes, summary=passes, inject=injections
  )
  every = [key for found in keys.values() for key in found]
  assert len(set(every)) == len(every)


@pytest.mark.parametrize('correction', [v for v in VARIANTS if v not in ('block_head', 'nosub')])
def test_dropout_acts_in_the_network_of_every_variant(correction):
  model, params, _ = prepared(correction=correction, dropout=0.5, layers=1)

  @jax.jit
  def corrected(params, key):
    parts, ones = model.parts(params), jnp.ones((1, 4, 8))
    return parts.inject(parts.summary(ones, 0 * ones, key), ones, ones, key, None)[0]

  masks = [np.asarray(corrected(params, jax.random.key(seed))) for seed in (0, 1)]
  assert (masks[0] != masks[1]).any()


def test_the_embedding_is_dropped_out_once_for_all_passes():
  """Where the correction adds nothing, every pass reads the very same dropped embedding."""
  model = crt_jax.build(BASE | dict(dropout=0.5, layers=1, convergence_weight=1.0))
  params, tokens = prepared(layers=1)[1:]
  params = without_correction(params)

  @jax.jit
  def run(params, key):
    e_BxTxC = model.parts(params).embed(tokens, key)
    inputs = [
      unroll(model.recurrence(params), e_BxTxC, depth, key=key).x_BxTxC for depth in (1, 2, 4)
    ]
    return e_BxTxC, inputs, model.hidden(params, tokens, 3, key).losses['convergence']

  e_BxTxC, inputs, convergence = run(params, jax.random.key(5))
  assert 0.2 < np.mean(np.asarray(e_BxTxC) == 0) < 0.8
  for x_BxTxC in inputs:
    np.testing.assert_array_equal(x_BxTxC, e_BxTxC)
  assert convergence == 0


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
  hidden = jax.jit(functools.partial(model.hidden, depth=6, telemetry=True))
  residual_K = hidden(params, tokens).telemetry['residual']
  assert residual_K.shape == (5,)
  assert residual_K[-1] < residual_K[1] < 1
