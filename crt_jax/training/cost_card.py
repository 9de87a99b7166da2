"""The cost card: what a run will cost, said before its first step."""

from typing import TYPE_CHECKING

import jax

from crt_jax import accounting
from crt_jax.models import device_defaults, kernel_choice
from crt_jax.runs.provenance import device_name
from crt_jax.training import sharding_table
from crt_jax.training.terminal import count, duration

if TYPE_CHECKING:
  from crt_jax.training.startup import Run


def cost_card(run: 'Run') -> str:
  """Returns a few lines: parameters, FLOPs per token, memory, devices, compile time, tokens to
  go."""
  config, compiled, state = run.config, run.compiled, run.state
  decided = device_defaults.decided(run.model.config)
  del decided['attention_kernel']  # what runs is said by itself
  stored = accounting.parameters(config.model).stored
  length = config.data.sequence_length
  flops, memory = [], []
  for depth, size in compiled.memory_bytes.items():
    label = '' if depth is None else f'{run.model.passes.letter}={depth} '
    flops.append(f'{label}{count(accounting.model_flops(config.model, length, depth))}')
    memory.append(f'{label}{size / 2**20:,.0f} MiB')
  mesh = ' x '.join(f'{axis} {size}' for axis, size in run.mesh.shape.items())
  tokens = config.data.batch_size * length
  steps = config.train.steps - run.first_step
  return '\n'.join(
    [
      f'model         {config.model.name}, {stored:,} parameters',
      f'training      {steps:,} steps of {config.data.batch_size} x {length} tokens = '
      f'{count(steps * tokens)} tokens',
      f'data          {run.dataset.summary}',
      f'FLOPs/token   {", ".join(flops) or "-"} (forward and backward)',
      f'state         {_mebibytes(sharding_table.shard_bytes(state.params))} of parameters, '
      f'{_mebibytes(sharding_table.shard_bytes(state.opt_state))} of the optimiser a device '
      f'({_mebibytes(sharding_table.whole_bytes(state))} in all; sharding.txt)',
      f'memory        {", ".join(memory) or "-"} a device, compiled',
      f'devices       {jax.device_count()} x {device_name()} ({jax.default_backend()}), '
      f'mesh {mesh}',
      f'attention     {kernel_choice.describe(run.model.config)}',
      f'computed as   {", ".join(f"{name}={value}" for name, value in decided.items())}',
      f'compile time  {compiled.seconds:.1f} s for {len(compiled.executables)} executable(s)',
      f'work so far   {duration(run.clock.seconds)} of training',
    ]
  )


def _mebibytes(size: int) -> str:
  return f'{size / 2**20:,.1f} MiB'
