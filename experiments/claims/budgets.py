"""The cost of each trained model, by crt_jax.accounting, and steps and widths for a budget."""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs.base import Run
from crt_jax import accounting
from experiments import sweep_files
from experiments.claims.claim import Arm

RESULTS = pathlib.Path(__file__).parents[2] / 'docs' / 'results'
# Compiling and evaluating, by a run of crt_small on two cores.
FIXED_SECONDS = 60
# FLOP/s of an H100 for models of C = 640 to 1024: less than the 39 to 42 % of the datasheet that
# the papers' models reached on an H200 (docs/performance.md, 6). Compiled programs
# (benchmarks.aot --claims) predict up to a quarter less time. No claim was run on one yet.
GPU_SPEED = 3e14


@dataclasses.dataclass(frozen=True)
class Budget:
  """The cost of one run; FLOPs are 2 x multiply-accumulates, at inference by the recurrence."""

  parameters: int
  flops: float  # per token, without the output layer
  flops_with_output: float
  training_flops: float  # of the whole run, mean over the depths that may be drawn
  steps: int
  tokens: int
  width: int
  heads: int


@functools.cache
def config_of(arm: Arm) -> ConfigDict:
  """Returns the config of an arm, with the steps of its file."""
  return sweep_files.config_of(Run(arm.name, arm.config, dict(arm.changes)), {})


@functools.cache
def of(arm: Arm, arms: tuple[Arm, ...]) -> Budget:
  """Returns the budget of one of the arms."""
  config = config_of(arm)
  model, length = config.model, config.data.sequence_length
  steps, tokens = derived_steps(arm, arms), config.data.batch_size * length
  with_output = accounting.model_flops(model, length, training=False, sequential=True)
  head = 2 * (accounting.crt_paper(model, output_layer=True) - accounting.crt_paper(model))
  return Budget(
    parameters=accounting.parameters(model).stored,
    flops=with_output - head,
    flops_with_output=with_output,
    training_flops=steps * step_flops(config),
    steps=steps,
    tokens=steps * tokens,
    width=model.width,
    heads=accounting.resolve(model).heads or model.width // accounting.resolve(model).head_width,
  )


def step_flops(config: ConfigDict) -> float:
  """Returns the training FLOPs of a step, the mean over the depths that may be drawn."""
  model, length = config.model, config.data.sequence_length
  fields = accounting.resolve(model)
  depths = [None]
  if getattr(fields, 'driver', '') == 'unroll':
    depths = list(range(fields.depth_min or fields.depth, fields.depth + 1))
  flops = [accounting.model_flops(model, length, depth) for depth in depths]
  return config.data.batch_size * length * sum(flops) / len(flops)


@functools.cache
def derived_steps(arm: Arm, arms: tuple[Arm, ...]) -> int:
  """Returns the steps of an arm: its config's, or as many as take the training FLOPs of `costs_as`.

  Raises:
    StopIteration: no arm has the name that `costs_as` gives.
  """
  config = config_of(arm)
  if not arm.costs_as:
    return config.train.steps
  other = config_of(next(one for one in arms if one.name == arm.costs_as))
  return round(other.train.steps * step_flops(other) / step_flops(config))


def matched_width(model: Callable[[int], Any], budget: float, head: int, output: bool) -> int:
  """Returns the multiple of `head` whose multiply-accumulates per token are nearest to a budget.

  Args:
    model: width -> fields of a model.
    head: width of each head, the same for all that are compared.
    output: whether the budget counts the output layer.
  """

  def excess(width: int) -> float:
    return accounting.crt_paper(model(width), output_layer=output) - budget

  width = next(width for width in itertools.count(head, head) if excess(width) >= 0)
  narrower = max(head, width - head)
  return min((narrower, width), key=lambda width: abs(excess(width)))


def seconds(arm: Arm, arms: tuple[Arm, ...], size: str) -> float | None:
  """Returns the estimated time of a run; None where FLOPs do not tell it.

  On two cores it follows from a recorded training speed, on an H100 from GPU_SPEED.
  """
  is_chase = 'pointer_chasing' in config_of(arm).data.corpus
  if size != 'cpu':
    is_predicted = size == 'gpu' and not is_chase  # whose steps wait for each other
    return FIXED_SECONDS + of(arm, arms).training_flops / GPU_SPEED if is_predicted else None
  task = 'pointer_chasing' if is_chase else 'quickstart'
  return FIXED_SECONDS + of(arm, arms).training_flops / speed(task)


@functools.cache
def speed(task: str) -> float:
  """Returns the recorded training FLOP/s.

  It is that of docs/results/quickstart.json, or of the three layers in pointer_chasing.json.
  """
  record = json.loads((RESULTS / f'{task}.json').read_text('utf-8'))
  if task == 'pointer_chasing':
    record = record['models']['transformer/N=3']
    record['training_seconds'] = record['seconds']
  config = ConfigDict(record['config'])
  return config.train.steps * step_flops(config) / record['training_seconds']
