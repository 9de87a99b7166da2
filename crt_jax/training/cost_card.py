"""The cost card: what a run is and what it will cost, printed before anything is compiled."""

import math
import time
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from crt_jax import accounting, evaluation, schema
from crt_jax.models import attention_choice, device_defaults
from crt_jax.program import program, script, typed
from crt_jax.runs.provenance import device_name
from crt_jax.training import sharding_table
from crt_jax.training.report import peak_flops
from crt_jax.training.terminal import count, duration

if TYPE_CHECKING:
  from crt_jax.training.startup import Run

SHARE_OF_PEAK = 0.4  # share of the peak that training reaches (docs/performance.md)
SHARE_OF_PRODUCT = 0.6  # share of a matrix product's FLOP/s that training reaches on a CPU
LONG = 86_400.0  # seconds above which the card names a shorter version
WIDTH = 100


def cost_card(run: 'Run') -> str:
  """Returns the card's lines: data, repetitions, FLOPs, devices, estimated time.

  A warning comes first if stand-in texts replace the intended ones.
  """
  config, state, model = run.config, run.state, run.model
  decided = device_defaults.decided(model.config)
  del decided['attention_kernel']  # it has a line of its own
  stored = accounting.parameters(config.model).stored
  length = config.data.sequence_length
  flops = [
    f'{name}{count(accounting.model_flops(config.model, length, depth))}'
    for name, depth in zip(depth_names(run, '{} '), run.depths, strict=True)
  ]
  mesh = ' x '.join(f'{axis} {size}' for axis, size in run.mesh.shape.items())
  tokens = config.data.batch_size * length
  steps = config.train.steps - run.first_step
  lines = [
    f'model         {config.model.name}, {stored:,} parameters',
    f'training      {steps:,} steps of {config.data.batch_size} x {length} tokens = '
    f'{count(steps * tokens)} tokens',
    f'data          {run.dataset.summary}',
    *epochs(run),
    f'FLOPs/token   {", ".join(flops) or "-"} (forward and backward)',
    f'state         {_mebibytes(sharding_table.shard_bytes(state.params))} of parameters, '
    f'{_mebibytes(sharding_table.shard_bytes(state.opt_state))} of the optimiser a device '
    f'({_mebibytes(sharding_table.whole_bytes(state))} in all; sharding.txt)',
    f'devices       {jax.device_count()} x {device_name()} ({jax.default_backend()}), mesh {mesh}',
    f'attention     {attention_choice.describe(model.config)}',
    f'computed as   {", ".join(f"{name}={value}" for name, value in decided.items())}',
    f'at the end    {scored(run)}',
  ]
  if run.first_step:
    lines.append(f'work so far   {duration(run.clock.seconds)} of training')
  seconds = 0.0
  if run.depths:
    rate = tokens_per_second(run)
    seconds = steps * tokens / rate
    lines.append(f'time          about {duration(seconds)} here, at {count(rate)} tokens/s')
  return '\n'.join([*stand_ins(run), *lines, *shorter(run, seconds)])


def stand_ins(run: 'Run') -> list[str]:
  """Returns a warning for a run on stand-in texts: its results compare with no other run."""
  used = schema.stand_ins(run.config)
  if not used:
    return []
  times, about = readings(run), run.config.about.stands_in_for
  fetch = f'{script("fetch")} --dataset=tinystories,wikipedia,fineweb-edu'
  return [
    '*' * WIDTH,
    f'*** STAND-IN TEXTS: {" and ".join(used)}, {times} times over, in place of',
    f'*** {about}.',
    '*** Whatever this run reaches compares with no published number. For the real texts:',
    f'*** {fetch} --output=corpora',
    '*** and then data=published among the arguments of --config (docs/cart.md, 5.2).',
    '*' * WIDTH,
  ]


def shorter(run: 'Run', seconds: float) -> list[str]:
  """Returns lines that name a shorter version of a run that would take days; [] if none."""
  first_look = run.config.about.first_look
  if seconds < LONG or not first_look:
    return []
  return [
    f'*** {duration(seconds)} on this machine. A first look, some minutes on a CPU:',
    f'*** {typed(program())} --config={first_look}',
  ]


def compiled_card(run: 'Run') -> str:
  """Returns the card's lines that are known once the steps are compiled."""
  compiled = run.compiled
  names = depth_names(run, '{} ')
  memory = [
    f'{name}{size / 2**20:,.0f} MiB'
    for name, size in zip(names, compiled.memory_bytes.values(), strict=True)
  ]
  made = len(compiled.executables) + len(compiled.telemetry)
  return (
    f'memory        {", ".join(memory) or "-"} a device, compiled in {compiled.seconds:.1f} s '
    f'({made} kind(s) of step)'
  )


def depth_names(run: 'Run', form: str = '{}') -> list[str]:
  """Returns 'K=2', 'K=3' for the depths of a run; '' of a model without passes."""
  letter = run.model.passes.letter if run.model.passes else ''
  return ['' if depth is None else form.format(f'{letter}={depth}') for depth in run.depths]


def readings(run: 'Run') -> str:
  """Returns how many times the text is read by the last step."""
  config = run.config
  total = config.train.steps * config.data.batch_size * config.data.sequence_length
  times = total / sum(run.dataset.training_tokens.values())
  return f'{times:,.0f}' if times >= 10 else f'{times:.2g}'


def epochs(run: 'Run') -> list[str]:
  """Returns a line of the tokens read from each source, and how often."""
  used = run.dataset.training_tokens
  of_sources = ' + '.join(f'{name} {count(tokens)}' for name, tokens in used.items())
  return [f'epochs        {readings(run)} of {of_sources} tokens'] if used else []


def scored(run: 'Run') -> str:
  """Returns a line of what the final evaluation scores."""
  parts = evaluation.plan(evaluation.scoring_model(run.model, run.config), run.dataset, run.config)
  tokens = sum({(part.kind, part.set): part.tokens for part in parts}.values())
  sets = ', '.join(dict.fromkeys(part.set for part in parts))
  return f'{count(tokens)} tokens of {sets} are scored in {len({p.form for p in parts})} form(s)'


def tokens_per_second(run: 'Run') -> float:
  """Returns the expected training speed, from a known peak or a measured matrix product."""
  length = run.config.data.sequence_length
  flops = [accounting.model_flops(run.config.model, length, depth) for depth in run.depths]
  reached = SHARE_OF_PEAK * peak_flops() or SHARE_OF_PRODUCT * product_flops(run.config.model.dtype)
  return reached / (sum(flops) / len(flops))


def product_flops(dtype: str) -> float:
  """Returns the FLOP/s of a matrix product on all devices together.

  Simulated devices share one machine and count once.
  """
  size = 1024
  x = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  seconds = math.inf
  for _ in range(3):  # the fastest: others may use the same cores
    since = time.perf_counter()
    product(x, x).block_until_ready()
    seconds = min(seconds, time.perf_counter() - since)
  devices = jax.process_count() if jax.default_backend() == 'cpu' else jax.device_count()
  return devices * 2 * size**3 / seconds


def _mebibytes(size: int) -> str:
  return f'{size / 2**20:,.1f} MiB'
