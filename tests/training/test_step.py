"""One update: accumulation, randomness as a function of the step, metrics, sharded equals
unsharded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import crt_jax
from benchmarks.collectives import collectives
from crt_jax import placing, sharding
from crt_jax.models.traced_flops import traced_flops
from crt_jax.runs import train_state as state_lib
from crt_jax.training import optimizer as optimizer_lib
from crt_jax.training import step as step_lib
from tests.close import assert_close
from tests.training.fake_model import FakeModel, fake_batch
from tests.training.test_optimizer import optimizer_config


def step_config(batch_size, accumulation=1, seed=0, gather='layer', **optimizer):
  """What a step reads of a config."""
  return ml_collections.ConfigDict(
    dict(
      seed=seed,
      train=dict(accumulation=accumulation),
      data=dict(batch_size=batch_size, sequence_length=6),
      mesh=dict(gather=gather),
      optimizer=optimizer_config(**optimizer).to_dict(),
    )
  )


def run_steps(model, batches, depths=None, accumulation=1, mesh=None, seed=0, gather='layer'):
  """Trains on the given batches through the compiled step; returns the last state and all
  metrics."""
  mesh = mesh or sharding.make_mesh(
    ml_collections.ConfigDict(dict(data=1, fsdp=1, tensor=1)), jax.devices()[:1]
  )
  config = step_config(batches[0]['tokens'].shape[0], accumulation, seed, gather)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, model, len(batches))
  schedule = optimizer_lib.make_schedule(config.optimizer, len(batches))
  abstract = state_lib.abstract_state(model, optimizer, mesh)
  compiled = step_lib.compile_steps(
    functools.partial(step_lib.make_train_step, model, optimizer, schedule, config, abstract, mesh),
    model.depths() or (None,),
    abstract,
    step_lib.abstract_batch(config, mesh),
  )
  state = state_lib.init_state(model, optimizer, abstract, seed)
  place, rows = placing.on_mesh(config.data.batch_size, mesh), []
  for index, batch in enumerate(batches):
    depth = depths[index] if depths else None
    before = state
    state, metrics = compiled(depth, state, place(batch))
    assert before.params['core']['weight'].is_deleted(), 'the state is donated'
    rows.append(jax.device_get(metrics))
  return state, rows


def test_the_step_writes_the_new_state_where_the_old_one_lay():
  """Everything that is donated is used: no second copy of parameters and moments."""
  model, mesh = FakeModel(), sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  config = step_config(8, accumulation=2)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, model, 1)
  abstract = state_lib.abstract_state(model, optimizer, mesh)
  rate = lambda _: 0.1  # noqa: E731
  jitted = step_lib.make_train_step(model, optimizer, rate, config, abstract, mesh)
  memory = jitted.lower(abstract, fake_batch(0)).compile().memory_analysis()
  state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  assert memory.alias_size_in_bytes == state_bytes


def test_accumulation_is_the_whole_batch():
  # Rows differ in how many targets count, so weighting slices equally would fail.
  batches = [fake_batch(0, uncounted=4), fake_batch(1, uncounted=5)]
  whole, whole_rows = run_steps(FakeModel(), batches)
  parts, parts_rows = run_steps(FakeModel(), batches, accumulation=4)
  assert_close(parts.params, whole.params, 2e-6)
  assert_close(parts_rows, whole_rows, 2e-6)
  assert parts_rows[0]['targets'] == np.sum(batches[0]['targets'] >= 0)


def test_metrics_and_step():
  state, rows = run_steps(FakeModel(), [fake_batch(0)] * 3)
  assert int(state.step) == 3
  assert set(rows[0]) == {'loss', 'cross_entropy', 'targets', 'grad_norm', 'learning_rate'}
  assert rows[0]['grad_norm'] > 0.5  # before clipping to 0.5
  assert rows[2]['loss'] < rows[0]['loss']


CORE, HEAD = 2 * 48 * 8 * 8, 2 * 48 * 8 * 16  # FLOPs of a product of 48 tokens


@pytest.mark.parametrize('name, accumulation', [('adamw', 1), ('muon', 2)])
@pytest.mark.parametrize(
  'frozen, flops',
  [(('embedding', 'core'), CORE + 2 * HEAD), (('head', 'core'), 2 * CORE + 2 * HEAD)],
)
def test_frozen_parts_stay_and_cost_nothing(frozen, flops, accumulation, name):
  """No product for their gradient, no moments, no orthogonal update, no decay, no share in the
  norm."""
  model, batch = FakeModel(), fake_batch(0)
  mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  config = step_config(8, accumulation, name=name, frozen=frozen)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, model, 2)
  abstract = state_lib.abstract_state(model, optimizer, mesh)
  step = step_lib.make_train_step(model, optimizer, lambda _: 0.1, config, abstract, mesh)
  assert traced_flops(step, abstract, batch) == flops
  moments = {
    jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(abstract.opt_state)
  }
  assert not any(part in path for part in frozen for path in moments)
  state = state_lib.init_state(model, optimizer, abstract, 0)
  before = jax.tree.map(np.asarray, state.params)
  gradients = jax.grad(model.loss, has_aux=True)(before, batch)[0]
  after, metrics = step(state, batch)
  trained = [g for part, g in gradients.items() if part not in frozen]
  np.testing.assert_allclose(metrics['grad_norm'], optax.tree.norm(trained), rtol=1e-5)
  same = jax.tree.map(lambda x, y: np.array_equal(x, y), before, after.params)
  assert same == {
    part: jax.tree.map(lambda _, p=part: p in frozen, before[part]) for part in before
  }


def test_dropout_is_a_function_of_seed_and_step():
  model = FakeModel(dropout=0.5)
  _, once = run_steps(model, [fake_batch(0)] * 2)
  _, again = run_steps(model, [fake_batch(0)] * 2)
  _, other = run_steps(model, [fake_batch(0)] * 2, seed=1)
  assert once == again
  assert once[0]['loss'] != other[0]['loss']
  # The same step on the same parameters but a later number drops other units.
  optimizer = optimizer_lib.make_optimizer(optimizer_config(), model, 2)
  params = model.init(jax.random.key(0))
  one_step = jax.jit(
    lambda state: step_lib.train_step(
      model, optimizer, lambda _: 0.1, 0, 1, state, fake_batch(0), depth=None
    )[1]['loss']
  )
  opt_state = optimizer.init(params)
  losses = [
    float(one_step(state_lib.TrainState(jnp.int32(number), params, opt_state))) for number in (0, 1)
  ]
  assert losses[0] != losses[1]


def test_each_slice_drops_out_with_its_own_key():
  model, key = FakeModel(dropout=0.5), jax.random.key(3)
  params = model.init(jax.random.key(0))
  row = {name: rows[:1] for name, rows in fake_batch(0).items()}
  eight = {name: np.repeat(rows, 8, axis=0) for name, rows in row.items()}
  gradients = jax.jit(step_lib.accumulate_gradients, static_argnums=(0, 4))
  _, found = gradients(model.loss, (params, None), eight, key, 8)
  loss = jax.jit(model.loss)
  losses = [float(loss(params, row, key=jax.random.fold_in(key, i))[0]) for i in range(8)]
  np.testing.assert_allclose(found['loss'], np.mean(losses), rtol=1e-5)
  assert np.std(losses) > 1e-3


def test_depth_is_static_and_each_depth_has_its_executable():
  model = FakeModel(draw=(1, 3))
  _, rows = run_steps(model, [fake_batch(0)] * 2, depths=[1, 3])
  shallow = model.loss(model.init(jax.random.key(0)), fake_batch(0), depth=1)[0]
  np.testing.assert_allclose(rows[0]['loss'], shallow, rtol=1e-6)
  with pytest.raises(KeyError):
    run_steps(model, [fake_batch(0)], depths=[2])


def test_moments_lie_where_their_parameters_lie():
  model = dataclasses.replace(FakeModel(), width=16)
  mesh = sharding.make_abstract_mesh(data=2, fsdp=4)
  optimizer = optimizer_lib.make_optimizer(optimizer_config(), model, 1)
  abstract = state_lib.abstract_state(model, optimizer, mesh)
  specs = {x.sharding.spec for x in jax.tree.leaves(abstract.params['core'])}
  assert any('fsdp' in spec for spec in specs)
  moments = [x for x in jax.tree.leaves(abstract.opt_state) if x.shape == (16, 16)]
  assert len(moments) == 6  # of the table, the core and the head
  expected = sorted(str(x.sharding) for x in jax.tree.leaves(abstract.params) if x.ndim == 2)
  assert sorted(str(x.sharding) for x in moments) == sorted(2 * expected)


ONCE = {
  'replicas': dict(data=4, fsdp=1),
  'fsdp': dict(data=1, fsdp=4),
  'both': dict(data=2, fsdp=2),
}


@pytest.mark.parametrize('mesh', ONCE)
@pytest.mark.parametrize('accumulation', (1, 2))
def test_gradients_are_added_up_once(mesh, accumulation):
  """The update is that of one device, whose rows differ in how many targets count."""
  mesh = sharding.make_mesh(dict(tensor=1, **ONCE[mesh]), jax.devices()[:4])
  alone, rows = two_steps(accumulation)
  together, split_rows = two_steps(accumulation, mesh=mesh, gather='step')
  assert_close(together.params, alone.params, 2e-6)
  assert_close(split_rows, rows, 2e-6)


@functools.cache
def two_steps(accumulation, **where):
  batches = [fake_batch(0, uncounted=4), fake_batch(1, uncounted=5)]
  return run_steps(FakeModel(dropout=0.2), batches, accumulation=accumulation, **where)


def test_no_loop_of_the_step_holds_a_collective():
  """A CRT of three passes with dropout sends its gradient once and gathers its weights once; where
  weights are gathered by layer, K times the block's. Frozen layers send no gradient."""

  def sent(gather, frozen=(), **sizes):
    fields = dict(name='crt', vocab_size=16, width=8, heads=2, layers=2, depth=3, depth_min=0)
    model = crt_jax.build(fields | dict(rotary='integer', dropout=0.1))
    mesh = sharding.make_mesh(dict(tensor=1, **sizes), jax.devices()[:4])
    config = step_config(8, gather=gather, frozen=frozen)
    optimizer = optimizer_lib.make_optimizer(config.optimizer, model, 2)
    abstract = state_lib.abstract_state(model, optimizer, mesh)
    jitted = step_lib.make_train_step(model, optimizer, lambda _: 0.1, config, abstract, mesh, 3)
    compiled = jitted.lower(abstract, step_lib.abstract_batch(config, mesh)).compile()
    split = [x for x in jax.tree.leaves(abstract.params) if 'fsdp' in x.sharding.spec]
    found = collectives(compiled.as_text())
    whole = sum(4 * x.size for x in jax.tree.leaves(abstract.params))
    parts = sum(4 * x.size for x in split)
    assert parts == 0 or parts > 0.9 * whole
    return {kind: each.result_bytes / whole for kind, each in found.items()}

  replicas = sent('layer', **ONCE['replicas'])
  assert replicas.keys() == {'all-reduce'} and 1 <= replicas['all-reduce'] < 1.02
  held = sent('layer', frozen=('layers',), **ONCE['replicas'])
  assert held['all-reduce'] < 0.4
  once = sent('step', **ONCE['fsdp'])
  assert 0.9 < once['all-gather'] <= 1 and once['reduce-scatter'] <= 1 / 4
  assert once['all-reduce'] < 0.12, 'what does not divide, and the norm'
  both = sent('step', **ONCE['both'])
  assert 0.9 < both['all-gather'] <= 1 and both['reduce-scatter'] <= 1 / 2
  assert both['all-reduce'] < 0.6, 'a half of the gradient, and what does not divide'
  by_layer = sent('layer', **ONCE['fsdp'])
  assert by_layer['all-gather'] > 2
