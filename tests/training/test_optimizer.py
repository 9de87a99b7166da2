"""The optimiser against AdamW written out in float64, and the learning-rate rules."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from crt_jax import schema, sharding
from crt_jax.runs import train_state
from crt_jax.training import optimizer as optimizer_lib
from tests.close import assert_close
from tests.contract.models import model_of
from tests.training.fake_model import FakeModel, fake_batch


def optimizer_config(**overrides):
  config = ml_collections.ConfigDict(
    dict(
      name='adamw',
      learning_rate=0.02,
      schedule='constant',
      warmup_steps=0,
      final_learning_rate=0.0,
      b1=0.9,
      b2=0.95,
      eps=1e-8,
      weight_decay=0.3,
      decay_mask='all',
      frozen=(),
      clip_norm=0.5,
      ema_decay=0.0,
    )
  )
  config.update(overrides)
  return config


def adamw_float64(params, gradients, config, decays=lambda path: True):
  """torch.optim.AdamW behind clip_grad_norm_, one list entry a step, written out by hand in
  float64."""
  params = {name: np.asarray(p, np.float64) for name, p in params.items()}
  m = {name: np.zeros_like(p) for name, p in params.items()}
  v = {name: np.zeros_like(p) for name, p in params.items()}
  for t, grads in enumerate(gradients, start=1):
    grads = {name: np.asarray(g, np.float64) for name, g in grads.items()}
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    scale = min(1.0, config.clip_norm / (norm + 1e-6)) if config.clip_norm else 1.0
    for name, g in grads.items():
      g = g * scale
      if decays(name):
        params[name] = params[name] * (1 - config.learning_rate * config.weight_decay)
      m[name] = config.b1 * m[name] + (1 - config.b1) * g
      v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
      m_hat = m[name] / (1 - config.b1**t)
      v_hat = v[name] / (1 - config.b2**t)
      params[name] = params[name] - config.learning_rate * m_hat / (np.sqrt(v_hat) + config.eps)
  return params


def flat(tree):
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): x for path, x in leaves}


def take_steps(config, batches, model):
  """Several steps on the given batches; returns first and last parameters and the gradients in
  between."""
  optimizer = optimizer_lib.make_optimizer(config, model, steps=len(batches))
  first = params = model.init(jax.random.key(1))
  opt_state = optimizer.init(params)
  gradients = []
  for batch in batches:
    grads = jax.grad(lambda p, b=batch: model.loss(p, b)[0])(params)
    gradients.append(flat(grads))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  return flat(first), flat(params), gradients


@pytest.mark.parametrize(
  ('overrides', 'decays'),
  [
    ({}, lambda name: True),
    ({'decay_mask': 'matrices'}, lambda name: not name.endswith('bias')),
    ({'clip_norm': 0.0, 'b1': 0.5}, lambda name: True),
    ({'name': 'adam', 'weight_decay': 0.0}, lambda name: False),
  ],
)
def test_steps_equal_adamw_in_float64(overrides, decays):
  config = optimizer_config(**overrides)
  batches = [fake_batch(0), fake_batch(1), fake_batch(0), fake_batch(1), fake_batch(1)]
  first, last, gradients = take_steps(config, batches, FakeModel())
  norms = [np.sqrt(sum(np.sum(np.square(g)) for g in step.values())) for step in gradients]
  assert min(norms) > 0.5, 'the clip must bite for this test to see it'
  expected = adamw_float64(first, gradients, config, decays)
  for name, value in last.items():
    assert_close(value, expected[name], 2e-6, name)


def test_clip_divides_by_norm_plus_epsilon():
  grads = {'w': jnp.asarray([3e-6, 4e-6])}
  clipped, _ = optimizer_lib.clip_by_norm(4e-6).update(grads, optax.EmptyState())
  np.testing.assert_allclose(clipped['w'], np.asarray([3e-6, 4e-6]) * 4 / 6, rtol=1e-5)
  kept, _ = optimizer_lib.clip_by_norm(1.0).update(grads, optax.EmptyState())
  np.testing.assert_array_equal(kept['w'], grads['w'])


def test_parameters_a_model_leaves_out_do_not_decay():
  class Partial(FakeModel):
    def decayed(self):
      used = jax.tree.map(lambda _: True, self.init(jax.random.key(0)))
      used['core'] = {'weight': False, 'bias': False}
      return used

  model = Partial()
  optimizer = optimizer_lib.make_optimizer(optimizer_config(), model, steps=1)
  params = model.init(jax.random.key(0))
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  assert not np.any(updates['core']['weight'])
  assert np.any(updates['head']['weight'])


def test_schedules():
  config = optimizer_config(learning_rate=1.0, warmup_steps=4)
  constant = optimizer_lib.make_schedule(config, steps=10)
  np.testing.assert_allclose([constant(i) for i in range(6)], [0.25, 0.5, 0.75, 1, 1, 1])
  config.update(schedule='cosine', final_learning_rate=0.1)
  cosine = optimizer_lib.make_schedule(config, steps=25)
  assert cosine(3) == 1.0
  assert cosine(4) < 1.0
  np.testing.assert_allclose(cosine(13.5), 0.55, atol=1e-6)  # half-way between updates 4 and 25
  np.testing.assert_allclose([cosine(24), cosine(99)], 0.1, atol=1e-6)
  config.update(warmup_steps=0)
  plain = optimizer_lib.make_schedule(config, steps=25)
  np.testing.assert_allclose([plain(0), plain(12), plain(24)], [1.0, 0.55, 0.1], atol=1e-6)


@pytest.mark.parametrize('steps', [3000, 30_500])
def test_the_schedule_of_cart(steps):
  """docs/cart.md, section 6, whose s counts updates from 1."""
  peak, least = 3e-4, 3e-5
  config = optimizer_config(
    learning_rate=peak, warmup_steps=100, schedule='cosine', final_learning_rate=least
  )
  schedule = optimizer_lib.make_schedule(config, steps)
  for s in (1, 2, 99, 100, 101, 102, steps // 2, steps - 1, steps):
    cosine = np.cos(np.pi * (s - 100) / (steps - 100))
    expected = peak * s / 100 if s < 100 else least + 0.5 * (peak - least) * (1 + cosine)
    # Float32 keeps 2^-24 of the peak, of which the cosine takes a share.
    np.testing.assert_allclose(schedule(s - 1), expected, rtol=0, atol=5 * 2**-24 * peak)


@pytest.mark.parametrize(
  ('rule', 'spared'),
  [
    ('all', set()),
    ('all_but_gate', {'gate/logit'}),
    ('matrices', {'gate/logit', 'blend/weight', 'final_norm/scale', 'prelude/norm1/scale'}),
  ],
)
def test_what_of_a_cart_decays(rule, spared):
  def mask(**changes):
    return flat(optimizer_lib.decay_mask(model_of('cart', **changes), rule))

  found = mask()
  assert {name for name in spared if not found[name]} == spared
  kept = {name for name, decays in found.items() if decays}
  assert {'embedding/weight', 'prelude/attention/q/weight', 'loop_code/weight'} <= kept
  assert (set(found) - kept == spared) if rule != 'matrices' else len(set(found) - kept) == 9
  # What a switch leaves unused stays out, whatever the rule.
  unused = mask(gate=False, blend=False, loop_code=False)
  assert not any(unused[n] for n in ('gate/logit', 'blend/weight', 'loop_code/weight'))


def test_only_a_cart_has_a_gate():
  with pytest.raises(ValueError, match="decay_mask='all_but_gate' needs a model with a gate"):
    optimizer_lib.decay_mask(model_of('crt'), 'all_but_gate')


def test_decay_alone_draws_the_published_curve():
  """sigmoid(a) without any gradient over both published schedules (cart.md, 9.3)."""
  for steps, expected in ((3000, 0.8901), (30_500, 0.7906)):
    config = optimizer_config(
      learning_rate=3e-4, warmup_steps=100, schedule='cosine', final_learning_rate=3e-5
    )
    rates = jax.vmap(optimizer_lib.make_schedule(config, steps))(jnp.arange(steps))
    logit = np.log(9) * np.prod(1 - 0.1 * np.asarray(rates, np.float64))
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('name', 'sgd'),
    ('b2', 1.0),
    ('learning_rate', 0.0),
    ('clip_norm', -1.0),
    ('schedule', 'linear'),
    ('decay_mask', 'gate'),
  ],
)
def test_wrong_values_name_the_field(field, value):
  with pytest.raises(ValueError, match=f'optimizer.{field}='):
    schema.resolve(schema.OptimizerConfig, optimizer_config(**{field: value}))


def test_lion_moves_by_the_sign_of_its_momentum():
  config = optimizer_config(name='lion', weight_decay=0.0, clip_norm=0.0)
  first, last, _ = take_steps(config, [fake_batch(0)], FakeModel())
  for name in first:
    moved = np.abs(np.asarray(last[name] - first[name]))
    assert np.all((moved < 1e-6) | (np.abs(moved - config.learning_rate) < 1e-6))


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adam():
  moved = {}
  for name in ('muon', 'adam'):
    config = optimizer_config(name=name, weight_decay=0.0, clip_norm=0.0)
    first, last, _ = take_steps(config, [fake_batch(0)], FakeModel())
    moved[name] = {path: np.asarray(last[path] - first[path]) for path in first}
  core = moved['muon'].pop('core/weight')
  values = np.linalg.svd(core, compute_uv=False)
  assert values.max() < 2 * values.min()  # Newton-Schulz brings singular values near to each other
  assert 0.1 < np.sqrt(np.mean(core**2)) / config.learning_rate < 0.3
  for path, change in moved['muon'].items():
    np.testing.assert_array_equal(change, moved['adam'][path])


@pytest.mark.parametrize('name', ['crt', 'cart', 'llama'])
def test_every_matrix_between_layers_is_split_into_its_two_sides(name):
  model = model_of(name)
  numbers = flat_numbers(model)
  shapes = flat(jax.eval_shape(model.init, jax.random.key(0)))
  width = model.config.width
  for path, found in numbers.items():
    if found is not None:
      sides = [
        np.prod([shapes[path].shape[i] for i in side])
        for side in (found.output_axis, found.reduction_axis)
      ]
      assert min(sides) > 1, path
  assert sum(found is not None for found in numbers.values()) >= 4
  assert all(found is None for path, found in numbers.items() if shapes[path].shape == (width,))


def flat_numbers(model):
  leaves = jax.tree_util.tree_leaves_with_path(
    model.axes(), is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): optimizer_lib.matrix_of(path, spec)
    for path, spec in leaves
  }


@pytest.mark.parametrize('name', ['lion', 'muon'])
def test_the_state_of_an_optimiser_lies_where_its_parameters_do(name):
  model = model_of('crt')
  optimizer = optimizer_lib.make_optimizer(optimizer_config(name=name), model, steps=2)
  mesh = sharding.make_mesh(dict(data=2, fsdp=4, tensor=1))
  abstract = train_state.abstract_state(model, optimizer, mesh)
  moments = [x for x in jax.tree.leaves(abstract.opt_state) if x.ndim >= 2 and x.size > 3 * 8]
  assert moments and any(not x.sharding.is_fully_replicated for x in moments)
