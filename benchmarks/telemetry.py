"""What measuring the recurrence costs: statistics in training, and Jacobians at evaluations.

  python -m benchmarks.telemetry --model=cart --output=benchmarks/results/telemetry_cart.json
  python -m benchmarks.telemetry --model=crt --output=benchmarks/results/telemetry_crt.json

The models of train_cpu. A step that measures (train.telemetry_every) takes turns with one that does
not; what it takes longer, divided by the 50 steps from one such step to the next, should be at most
1 % of a step. The Jacobian (eval.jacobian_iterations) is timed beside a validation of 50 windows.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app

import crt_jax
from benchmarks.results import publish
from benchmarks.steps import ROUNDS
from benchmarks.train_cpu import CASES, MODEL, Case
from crt_jax import evaluation
from crt_jax.evaluation.jacobian import jacobian
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.rounding import ceil_div
from crt_jax.runs.train_state import TrainState
from crt_jax.training.step import train_step
from crt_jax.types import Params

EVERY = 50  # steps
WINDOWS = 50
ITERATIONS = 40


def steps_of(case: Case, model: Model, params: Params) -> dict:
  """Returns functions 'plain' and 'telemetry' that run a training step and wait for its metrics."""
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-4, weight_decay=0.01))
  fixed = functools.partial(train_step, model, tx, lambda _: 2e-4, 0, 1, depth=None)
  batch = dict(zip(('tokens', 'targets'), map(jnp.asarray, case.rows()), strict=True))
  params = jax.tree.map(jnp.copy, params)
  carry = [TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))]

  def run(step: Callable):
    carry[0], metrics = step(carry[0], batch)
    return jax.device_get(metrics)

  return {
    name: functools.partial(
      run, jax.jit(functools.partial(fixed, telemetry=telemetry), donate_argnums=0)
    )
    for name, telemetry in (('plain', False), ('telemetry', True))
  }


def timed(run: Callable[[], Any]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def main(argv: list[str]) -> None:
  del argv
  case = CASES[MODEL.value]
  model = crt_jax.build(case.fields)
  params = jax.jit(model.init)(random_key(0))
  steps = steps_of(case, model, params)
  tokens, targets = case.rows()
  batches = [dict(tokens=tokens, targets=targets)] * ceil_div(WINDOWS, case.batch)
  steps |= {
    'validation': lambda: evaluation.evaluate(model, params, batches),
    'jacobian': lambda: jax.device_get(jacobian(model, params, tokens, iterations=ITERATIONS)),
  }
  for run in steps.values():  # compiles
    run()
  seconds = {name: [] for name in steps}
  for _ in range(ROUNDS.value):
    for name in ('plain', 'telemetry'):
      seconds[name].append(timed(steps[name]))
  for name in ('validation', 'jacobian'):
    seconds[name] = [timed(steps[name]) for _ in range(3)]
  median = {name: statistics.median(found) for name, found in seconds.items()}
  # Of neighbours in time, so that a slow minute hits both.
  extra = statistics.median(
    b - a for a, b in zip(seconds['plain'], seconds['telemetry'], strict=True)
  )
  publish(
    dict(
      what='share of training time that telemetry takes every 50 steps; medians of seconds',
      model=case.described(),
      seconds={name: round(value, 4) for name, value in median.items()},
      telemetry_step_minus_plain_step=round(extra, 4),
      share_of_training_time=round(extra / EVERY / median['plain'], 5),
      jacobian_iterations=ITERATIONS,
      jacobian_per_validation=round(median['jacobian'] / median['validation'], 3),
    )
  )


if __name__ == '__main__':
  app.run(main)
