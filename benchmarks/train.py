"""Training speed of the paper-size models on one accelerator: tokens/s, utilisation, memory.

  python -m benchmarks.train --output=benchmarks/results/train_h200.json     # one GPU or TPU
  python -m benchmarks.train --case=crt_d5_c1120 --profile                   # one model, by part
  python -m benchmarks.train --case=cart_d1024 --change=model.unroll_scans=no
  python -m benchmarks.train --smoke                                         # a minute on a CPU

Each model takes the whole training step of its config (AdamW, clipping, float32 parameters) on
random tokens, in bfloat16 and without dropout; the rest is what the platform's defaults make of it
(crt_jax/models/device_defaults.py). Of SETTINGS the first is taken that fits the memory.
Every model runs in a process of its own, so that its peak of memory is its own.

docs/performance.md says what the numbers mean. Where the peak of the hardware is not known,
utilisation is 0.
"""

import ast
import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

import crt_jax
from benchmarks import results
from benchmarks.cases import CASES, config_of, recomputed_flops
from crt_jax import accounting, cli, placing, sharding
from crt_jax.cli import config_files
from crt_jax.cli.user_errors import did_you_mean
from crt_jax.layers.attention_kernels import KERNELS
from crt_jax.models import attention_choice
from crt_jax.models.base import Model
from crt_jax.runs import train_state
from crt_jax.training import step
from crt_jax.types import Batch, Tree
from experiments.latency.machine import matrix_product

# What is recomputed, and in how many slices the batch is worked off: the fastest first.
SETTINGS = {'model.remat': ('auto', 'layer'), 'train.accumulation': (1, 2, 4)}
_CASE = flags.DEFINE_enum('case', None, list(CASES), 'One model only, in this process.')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps that are timed together.', lower_bound=1)
_GROUPS = flags.DEFINE_integer('groups', 5, 'How often; the median counts.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch_size', 0, "Sequences a step; 0 = the config's.", lower_bound=0)
_KERNEL = flags.DEFINE_enum('kernel', 'auto', ['auto', *KERNELS], 'model.attention_kernel.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Toys of the same models: does everything run?')
_CHANGES = flags.DEFINE_multi_string(
  'change', [], 'FIELD=VALUE of the config, such as model.unroll_scans=no; may be repeated.'
)
_PROFILE = flags.DEFINE_bool('profile', False, 'Also where the time of a step goes, by part.')


def main(argv: list[str]) -> None:
  del argv
  names = list(CASES) if _CASE.value is None else [_CASE.value]
  fixed = [parse_changes(_CHANGES.value, CASES[name][0]) for name in names][0]
  if _CASE.value is not None:
    config = config_of(_CASE.value, _SMOKE.value, _KERNEL.value, _BATCH.value, fixed)
    how = dict(profile=_PROFILE.value, smoke=_SMOKE.value, fixed=tuple(fixed))
    results.publish(measure(config, _STEPS.value, _GROUPS.value, **how))
    return
  # The parent touches no device before its children are done: the first to do so takes the memory.
  found = {name: in_own_process(name) for name in CASES}
  results.publish(dict(what='training speed, by model', models=found))


def in_own_process(case: str) -> dict:
  """Measures one case in a process of its own with this process's flags.

  It returns the result, or the line of its failure.
  """
  print(f'{case} ...', file=sys.stderr, flush=True)
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'result.json'
    # The last of two values of a flag counts.
    words = [*sys.argv[1:], f'--case={case}', f'--output={file}']
    command = [sys.executable, '-m', 'benchmarks.train', *words]
    done = subprocess.run(command, capture_output=True, encoding='utf-8', errors='replace')
    if done.returncode:
      lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
      return dict(failed=lines[-1])
    return json.loads(file.read_text('utf-8'))


def parse_changes(words: list[str], spec: str) -> dict:
  """Returns dotted field -> value, from FIELD=VALUE of the config `spec`.

  Raises:
    Mistake: no '=', no such field, or a value of another type.
  """
  known, found = config_files.fields(config_files.load(spec)), {}
  for word in words:
    name, equals, value = word.partition('=')
    if not equals:
      raise cli.Mistake(f'--change={word} has no value; write FIELD=VALUE')
    if name not in known:
      suggestion = config_files.closest_field(name, known)
      raise cli.Mistake(f'--change: {spec} has no field {name}{did_you_mean(suggestion)}')
    kind, _ = known[name]
    try:
      found[name] = value if kind is str else ast.literal_eval(value)
    except (SyntaxError, ValueError):
      found[name] = None
    is_right = isinstance(found[name], (kind, int) if kind is float else kind)
    if not is_right or (isinstance(found[name], bool) and kind is not bool):
      raise cli.Mistake(f'--change={word} must be of type {kind.__name__}')
  return found


def measure(
  config: ConfigDict,
  steps: int,
  groups: int,
  profile: bool = False,
  smoke: bool = False,
  devices: Sequence[jax.Device] | None = None,
  fixed: tuple[str, ...] = (),
) -> dict:
  """Compiles and times the training step of a config on `devices`; None = all there are.

  Args:
    fixed: fields of the config that are not to be changed, of those that SETTINGS would try.

  Returns: a dict ready for JSON; docs/performance.md describes its fields.

  Raises:
    ValueError: the kernel cannot run here, or nothing of SETTINGS fits the memory.
  """
  jax.config.update('jax_enable_compilation_cache', False)  # compile time is measured
  mesh = sharding.make_mesh(config.mesh, devices)
  device = mesh.devices.flat[0]
  attention_choice.check_device(crt_jax.build(config.model, device).config, device)
  rows_BxT = config.data.batch_size, config.data.sequence_length
  model, compiled, seconds, parts = first_that_fits(config, mesh, steps, groups, profile, fixed)
  depth, executable = next(iter(compiled.executables.items()))

  per_step = statistics.median(seconds)
  tokens_per_second = math.prod(rows_BxT) / per_step
  flops = accounting.model_flops(config.model, rows_BxT[1], depth)
  recomputed = recomputed_flops(model, config)
  product = matrix_product(config.model.dtype, 256 if smoke else 8192) * mesh.size
  datasheet = accounting.peak_flops(jax.devices()[0].device_kind) * mesh.size
  memory = executable.memory_analysis()
  return dict(
    model=dataclasses.asdict(model.config),
    parameters=accounting.parameters(config.model).stored,
    batch_size=rows_BxT[0],
    sequence_length=rows_BxT[1],
    accumulation=config.train.accumulation,
    remat=model.config.remat,
    unroll_scans=model.config.unroll_scans,
    loss_chunk_mib=model.config.loss_chunk_mib,
    attention=attention_choice.describe(model.config),
    seconds_per_step=per_step,
    seconds=seconds,
    tokens_per_second=tokens_per_second,
    model_flops_per_token=flops,
    hardware_flops_per_token=flops + recomputed,
    model_flops_per_second=flops * tokens_per_second,
    model_flops_utilisation=share(flops * tokens_per_second, datasheet),
    hardware_flops_utilisation=share((flops + recomputed) * tokens_per_second, datasheet),
    datasheet_flops_per_second=datasheet,
    matrix_product_flops_per_second=product,
    share_of_matrix_product=share(flops * tokens_per_second, product),
    compile_seconds=compiled.seconds,
    memory_bytes=dict(
      compiled=compiled.memory_bytes[depth],
      arguments=memory.argument_size_in_bytes,
      donated=memory.alias_size_in_bytes,
      temporaries=memory.temp_size_in_bytes,
      device_peak=peak_bytes(),
    ),
    **({'share_of_time': parts} if profile else {}),
  )


def first_that_fits(
  config: ConfigDict,
  mesh: Mesh,
  steps: int,
  groups: int,
  profile: bool,
  fixed: tuple[str, ...] = (),
) -> tuple[Model, step.Compiled, list[float], dict]:
  """Returns model, compiled step, seconds per step and profile of the first fitting setting.

  SETTINGS are tried in order, and the config is changed to the one that fits. The profile is {}
  unless one is wanted.
  """
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', float('inf'))
  free = {name: values for name, values in SETTINGS.items() if name not in fixed}
  tried = []
  for values in itertools.product(*free.values()):
    config.update_from_flattened_dict(dict(zip(free, values, strict=True)))
    remat, slices = config.model.remat, config.train.accumulation
    if config.data.batch_size % (slices * mesh.size):
      continue
    try:
      return run(config, mesh, limit, steps, groups, profile)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      tried.append(f'remat {remat} in {slices}: {str(error).splitlines()[0]}')
  raise ValueError(f'nothing fits; use a smaller --batch_size ({"; ".join(tried)})')


def run(
  config: ConfigDict, mesh: Mesh, limit: float, steps: int, groups: int, profile: bool
) -> tuple[Model, step.Compiled, list[float], dict]:
  """Returns what `first_that_fits` returns, for one setting.

  Raises:
    jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, also where the compiled step needs over `limit`.
  """
  model = crt_jax.build(config.model, mesh.devices.flat[0])
  making = step.steps_of(config, model, mesh)
  depth = None if model.depths() is None else model.resolve_depth(None)
  batch_shape = step.abstract_batch(config, mesh)
  compiled = step.compile_steps(making.make, (depth,), making.abstract, batch_shape)
  if compiled.memory_bytes[depth] > limit:
    gib = compiled.memory_bytes[depth] / 2**30
    raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {gib:.1f} GiB, compiled')
  executable = compiled.executables[depth]
  shape = config.data.batch_size, config.data.sequence_length
  tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, shape, np.int32)
  place = placing.on_mesh(len(tokens), mesh)
  targets = np.roll(tokens, -1, axis=1)
  batch = place(dict(tokens=tokens[place.rows], targets=targets[place.rows]))
  carry = train_state.init_state(model, making.optimizer, making.abstract, config.seed)
  seconds, carry = time_steps(executable, carry, batch, steps, groups)
  parts = {}
  if profile:
    from benchmarks import profile_parts  # defines flags of its own

    profiled = executable
    if jax.default_backend() == 'gpu':
      # Its trace names no operation of what runs inside a recorded command buffer.
      lowered = making.make(depth).lower(making.abstract, batch_shape)
      options: dict[str, Any] = {'xla_gpu_graph_min_graph_size': 10**6}
      profiled = lowered.compile(compiler_options=options)
      carry, _ = jax.block_until_ready(profiled(carry, batch))

    def once():
      return jax.block_until_ready(profiled(carry, batch))

    parts = profile_parts.profile(once, profiled.as_text())
  return model, compiled, seconds, parts


def time_steps(
  executable: Callable, carry: Tree, batch: Batch, steps: int, groups: int
) -> tuple[list[float], object]:
  """Returns seconds per step of each group, and the final state.

  Nothing is read between the steps of a group, as in training; the first two steps are not timed.
  """
  seconds = []
  for timed in range(groups + 1):
    start = time.perf_counter()
    for _ in range(steps if timed else 2):
      carry, metrics = executable(carry, batch)
    jax.block_until_ready((carry, metrics))
    seconds.append((time.perf_counter() - start) / steps)
  return seconds[1:], carry


def peak_bytes() -> int | None:
  """Returns the most memory the first device ever used in this process; None if unknown."""
  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def share(of: float, whole: float) -> float:
  """Returns of / whole; 0 if the whole is unknown."""
  return of / whole if whole else 0.0


if __name__ == '__main__':
  cli.run(main)
