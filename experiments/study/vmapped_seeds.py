"""Trains several seeds of one small run at once, stacked by vmap.

Studies need them, since a difference counts only beside the spread over seeds.
"""

import collections
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from crt_jax import accounting, data, evaluation
from crt_jax.evaluation.jacobian import jacobian
from crt_jax.keys import random_key
from crt_jax.models import attention_choice
from crt_jax.models.base import Model
from crt_jax.runs.train_state import TrainState, quick_compile
from crt_jax.training import optimizer, startup
from crt_jax.training.step import train_step
from crt_jax.types import Array, Batch, Params

MEASURED = ('cross_entropy', 'perplexity', 'bits_per_byte')


def train_stacked(
  config: ConfigDict, seeds: tuple[int, ...], report: Callable[[dict], None]
) -> dict:
  """Returns `train_and_keep` without the parameters, and with 'jacobian', of the last pass."""
  record, params_S, model, dataset = train_and_keep(config, seeds, report)
  measured = _jacobian(model, rows_of(params_S), dataset, config) if model.depths() else {}
  return record | {'jacobian': measured}


def train_and_keep(
  config: ConfigDict,
  seeds: tuple[int, ...],
  report: Callable[[dict], None],
  params_S: dict | None = None,
  first_batch: int = 0,
) -> tuple:
  """Trains `config` once per seed, in lockstep on one device, and evaluates the end.

  The seeds decide parameters and dropout. The data and drawn depths are those of `config.seed`, so
  all seeds see the same batches.

  Args:
    config: a complete config; mesh, checkpoints and samples are not read.
    report: called with every row of the history, as it is made.
    params_S: parameters to start from, stacked over seeds; None: initialised by the seeds.
    first_batch: number of batches of the data that others have seen before.

  Returns:
    A dict ready for JSON; where a value differs by seed it is a list in the order of `seeds`.
    'history': rows of 'step', 'decay_factor' (by what weight decay alone has multiplied a
    parameter), the metrics and, every telemetry_every steps, the statistics of the recurrence.
    'data': which text it was. 'validation': what config.eval scores. 'seconds' of all steps but
    each depth's first, in which it is compiled, in proportion to all. And the parameters, stacked;
    the model; the data.

  Raises:
    ValueError: a mistake in the config, before anything is compiled.
  """
  config, model = startup.check_config(config)
  attention_choice.check_device(model.config)
  evaluation.forms(model, config)
  dataset = data.prepare(config.data)
  dataset.check_vocabulary(config.model.vocab_size)
  tx = optimizer.make_optimizer(config.optimizer, model, config.train.steps)
  schedule = optimizer.make_schedule(config.optimizer, config.train.steps)

  def init(seed: Array, params: Params):
    params = model.init(random_key(seed)) if params is None else params
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

  @functools.partial(jax.jit, static_argnames=('depth', 'telemetry'), donate_argnums=0)
  def step(states: TrainState, seeds_S: Array, batch: Batch, depth: int | None, telemetry: bool):
    def one(seed: Array, state: TrainState):
      return train_step(
        model, tx, schedule, seed, config.train.accumulation, state, batch,
        depth=depth, telemetry=telemetry, frozen=config.optimizer.frozen,
      )  # fmt: skip

    return jax.vmap(one)(seeds_S, states)

  rates = np.asarray(jax.vmap(schedule)(jnp.arange(config.train.steps)), np.float64)
  decay_factor = np.cumprod(1 - config.optimizer.weight_decay * rates)
  seeds_S = jnp.asarray(seeds, jnp.uint32)
  states = jax.jit(jax.vmap(init), compiler_options=quick_compile())(seeds_S, params_S)
  history, seconds, compiled = [], [], set()
  batches = data.train_batches(dataset, config.data, config.seed).iterator(first_batch)
  for index in range(1, config.train.steps + 1):
    measures = config.train.telemetry_every > 0 and index % config.train.telemetry_every == 0
    depth = model.depth_at(config.seed, index - 1)
    batch, start = next(batches), time.perf_counter()
    states, metrics = step(states, seeds_S, batch, depth, measures)
    jax.block_until_ready(metrics)
    if (depth, measures) in compiled:
      seconds.append(time.perf_counter() - start)
    compiled.add((depth, measures))
    if measures or index % config.train.log_every == 0 or index in (1, config.train.steps):
      row = {'step': index, 'decay_factor': decay_factor[index - 1]}
      row |= {name: x.tolist() for name, x in jax.device_get(metrics).items()}
      history.append(row)
      report(row)
  record = {
    'seeds': list(seeds),
    'cost': _cost(model, config),
    'seconds': sum(seconds) / max(len(seconds), 1) * config.train.steps,
    'history': history,
    'data': dataset.identity,
    'validation': _validation(model, rows_of(states.evaluated), dataset, config),
  }
  return record, states.evaluated, model, dataset


def rows_of(params_S: dict) -> list[dict]:
  """Returns the parameters of every seed."""
  count = jax.tree.leaves(params_S)[0].shape[0]
  return [jax.tree.map(lambda a, i=i: a[i], params_S) for i in range(count)]


def _cost(model: Model, config: ConfigDict) -> dict:
  length, steps = config.data.sequence_length, config.train.steps
  drawn = collections.Counter(model.depth_at(config.seed, step) for step in range(steps))
  flops = sum(n * accounting.model_flops(config.model, length, d) for d, n in drawn.items()) / steps
  return {
    'parameters': accounting.parameters(config.model).stored,
    'forward_backward_flops_per_token': flops,  # mean over steps, whose depths may be drawn
    'tokens': steps * config.data.batch_size * length,
  }


def _validation(
  model: Model, params_S: list[Params], dataset: data.Dataset, config: ConfigDict
) -> list[dict]:
  """Returns every validation set and form of the evaluation, by seed.

  The whole set is scored if config.eval asks for it.
  """
  kind = 'whole' if config.eval.whole else 'sampled'
  results_S = [evaluation.protocol(model, params, dataset, config)[kind] for params in params_S]
  return [
    {name: records_S[0][name] for name in ('set', 'form', 'depth')}
    | {name: [record[name] for record in records_S] for name in MEASURED}
    for records_S in zip(*results_S, strict=True)
  ]


def _jacobian(
  model: Model, params_S: list[Params], dataset: data.Dataset, config: ConfigDict
) -> dict:
  """Returns spectral radius and norm of the last pass on the first validation window, by seed."""
  packed = next(iter(dataset.validation_sets.values()))
  tokens_1xT = next(iter(data.first_validation(packed, config.data.sequence_length, 1, 1)))[
    'tokens'
  ]
  found = [jax.device_get(jacobian(model, params, tokens_1xT)) for params in params_S]
  return {name: [float(one[name]) for one in found] for name in found[0]}
