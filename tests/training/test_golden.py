"""The first steps of tiny runs, to the digits that float arithmetic leaves free: a change of
training shows here first."""

import json
import pathlib

import jax
import pytest

import crt_jax
from configs import base
from crt_jax import sharding
from crt_jax.runs import train_state as state_lib
from crt_jax.training import optimizer as optimizer_lib
from crt_jax.training import step as step_lib
from tests.training.fake_model import fake_batch
from tests.training.tiny import tiny_config

FILE = pathlib.Path(__file__).with_name('golden.json')
ADVICE = (
  'the first steps of training changed; if that is meant, run `python -m '
  'tests.training.test_golden` '
  'and say in docs/LOG.md why'
)
_CRT = dict(layers=1, width=16, heads=2, depth=2, depth_min=0)
_CART = dict(width=16, head_width=8, prelude_layers=2, loops=2)
MODELS = {
  'crt': base.crt_model(**_CRT, dropout=0.0),
  'crt_dropout': base.crt_model(**_CRT, dropout=0.2),
  'cart': base.cart_model(**_CART),
  'cart_dropout': base.cart_model(**_CART, dropout=0.2),
  'transformer': base.transformer_model(layers=2, width=16, heads=2, dropout=0.0),
}


def first_steps(name, steps=3):
  """Loss and gradient norm of the first steps on one device."""
  config = tiny_config()
  with config.unlocked():
    config.model = {**MODELS[name], 'vocab_size': 64}
    config.data.update(batch_size=4, sequence_length=12)
  model = crt_jax.build(config.model)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  tx = optimizer_lib.make_optimizer(config.optimizer, model, 10)
  schedule = optimizer_lib.make_schedule(config.optimizer, 10)
  abstract = state_lib.abstract_state(model, tx, mesh)
  depth = model.depth_at(config.seed, 0)
  jitted = step_lib.make_train_step(model, tx, schedule, config, abstract, mesh, depth)
  state = state_lib.init_state(model, tx, abstract, config.seed)
  rows = []
  for step in range(steps):
    batch = fake_batch(step, batch=4, length=12, vocab=64)
    state, metrics = jitted(state, batch)
    rows.append({key: float(metrics[key]) for key in ('loss', 'cross_entropy', 'grad_norm')})
  return rows


@pytest.mark.parametrize('name', MODELS)
def test_first_steps_are_as_recorded(name):
  with jax.default_prng_impl('rbg'):  # no run depends on it
    rows = first_steps(name)
  for step, (row, golden) in enumerate(
    zip(rows, json.loads(FILE.read_text())[name], strict=True), start=1
  ):
    assert row == pytest.approx(golden, rel=2e-5), f'step {step}: {ADVICE}'


if __name__ == '__main__':
  FILE.write_text(json.dumps({name: first_steps(name) for name in MODELS}, indent=1) + '\n')
