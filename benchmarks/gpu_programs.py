"""Decoding and training compiled for a GPU that is not there: kernels, moves, memory, bytes.

Needs the `aot-gpu` extra; training with cuDNN's attention also the libraries of `cuda13`. No time
is measured and nothing is autotuned: `predicted_us` follows from two prices and the datasheet.
"""

import contextlib
import glob
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

import crt_jax
from benchmarks.cases import config_of, recomputed_flops
from benchmarks.gpu_text import Program, kernels
from configs.latency import models, with_kernels
from crt_jax import accounting, sharding
from crt_jax.decoding import Sampling, row_keys
from crt_jax.decoding.loop import chunk_decoder
from crt_jax.decoding.prepare import empty_state, prepare
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.recurrence.state import DecodeState
from crt_jax.training import step
from crt_jax.types import Array, Tree
from experiments.latency.floors import datasheet_bandwidth
from experiments.latency.launches import count

TARGETS = {file.stem: file for file in pathlib.Path(__file__).parent.glob('targets/*.txtpb')}
TOKENS, CAPACITY = 16, 448  # of one call, and slots of the caches, at batch 1 in bfloat16
# Microseconds of a kernel: recorded in a CUDA graph (2 to 2.5 on an H200), and launched by itself.
IN_GRAPH_US, LAUNCHED_US = 2.25, 4.5
PRODUCT_FLOPS = 7e14  # a second, of bfloat16 products of 8192 on an H200 (train_h200.json)
PRODUCTS = ('matrix products', 'projections', 'fused kernel', 'several parts')  # ends of parts


def row_label(target: str) -> str:
  """Returns the name of a row: another version of JAX makes other kernels."""
  return f'{target}, jax {jax.__version__}'


def device_of(target: str) -> jax.Device:
  """Returns the GPU of TARGETS; RuntimeError where the plugin is missing."""
  [device] = devices_of_nodes(target, 1, 1)
  return device


def devices_of_nodes(target: str, nodes: int, each: int) -> list[jax.Device]:
  """Returns the GPUs of so many nodes, a process each."""
  text = TARGETS[target].read_text('utf-8')
  return topologies.get_topology_desc(
    platform='cuda', topology=f'{nodes}x1x{each}', target_config=text
  ).devices


def decoding_of(name: str, target: str) -> dict:
  """Returns the row of a model of configs/latency.py: one call that draws TOKENS tokens."""
  return decoding_on(device_of(target), decoded()[name])


def decoded() -> dict[str, dict]:
  """Returns the models whose decoding can be compiled, by name."""
  return models() | with_kernels()


def decoding_on(device: jax.Device, fields: dict, **sizes: int) -> dict:
  """Returns the row for any device; on a CPU, where XLA lists no kernels, they are counted."""
  compiled, thunks = compile_with_thunks(lower_decoding(fields, device, **sizes))
  text = compiled.as_text() or ''
  program, found = Program(text), kernels(thunks)
  loop = program.token_loop()
  run, parts = count(program.lines, loop), program.bytes_by_part(loop)
  return dict(
    kernels_per_token=found.in_loop,
    kernels_run_per_token=run,
    kernels_outside=found.outside,
    **_row(compiled, program, parts, found.command_buffers),
    predicted_us=_predicted(device, run, parts),
  )


def training_of(name: str, target: str) -> dict:
  """Returns the row of a training step of CASES."""
  return training_on(device_of(target), measured(name))


def training_on(device: jax.Device, config: ConfigDict) -> dict:
  """Returns the row of a training step, of the deepest one where the depth is drawn."""
  compiled, thunks = compile_with_thunks(lower_step(config, device))
  program, found = Program(compiled.as_text() or ''), kernels(thunks)
  run, parts = count(program.lines, program.entry), program.bytes_by_part(program.entry)
  return dict(
    kernels=run,
    **_row(compiled, program, parts, found.command_buffers),
    predicted_us=_predicted(device, run, parts, hardware_flops(config, device)),
  )


def hardware_flops(config: ConfigDict, device: jax.Device) -> float:
  """Returns the FLOPs of the deepest step, those that the backward pass computes anew included."""
  model, _ = deepest(config, device)
  tokens = config.data.batch_size * config.data.sequence_length
  return deepest_flops(config, device) + tokens * recomputed_flops(model, config)


def deepest_flops(config: ConfigDict, device: jax.Device) -> float:
  """Returns the same without what is computed anew."""
  _, depth = deepest(config, device)
  length = config.data.sequence_length
  return config.data.batch_size * length * accounting.model_flops(config.model, length, depth)


def deepest(config: ConfigDict, device: jax.Device) -> tuple[Model, int | None]:
  """Returns the model for a device, and the depth of its deepest step."""
  model = crt_jax.build(config.model, device)
  return model, None if model.depths() is None else model.resolve_depth(None)


def lower_decoding(
  fields: dict, device: jax.Device, rows: int = 1, capacity: int = CAPACITY, end: int = CAPACITY
) -> jax.stages.Lowered:
  """Returns the decoding of one chunk by prepared parameters in bfloat16, up to position `end`."""
  model = crt_jax.build(fields | dict(dtype='bfloat16'))
  params = jax.eval_shape(lambda key: prepare(model, model.init(key))[1], random_key(0))

  def start(params: Tree) -> tuple[Array, DecodeState, Array]:
    state = model.seeing(empty_state(model, params, rows, capacity), end)
    return row_keys(0, jnp.arange(rows)), state, jnp.zeros((rows, model.config.vocab_size))

  arguments = _placed((params, *jax.eval_shape(start, params)), device)
  with described(jax.sharding.Mesh([device], ('device',))):
    return chunk_decoder(device.platform).lower(model, Sampling(), TOKENS, *arguments)


def measured(case: str) -> ConfigDict:
  """Returns the config of CASES with the settings that benchmarks.train tries first."""
  config = config_of(case)
  config.model.remat, config.train.accumulation = 'auto', 1
  return config


def lower_step(config: ConfigDict, device: jax.Device) -> jax.stages.Lowered:
  """Returns a training step, the deepest where the depth is drawn."""
  mesh = sharding.make_mesh(config.mesh, [device])
  model, depth = deepest(config, device)
  steps = step.steps_of(config, model, mesh)
  with described(mesh):
    return steps.make(depth).lower(steps.abstract, step.abstract_batch(config, mesh))


def described(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager:
  """Returns the context within which Pallas lowers for devices that are not there."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def compile_with_thunks(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
  """Compiles; returns also the list of what it executes, which XLA only writes to a file."""
  with tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile(compiler_options=dict(xla_dump_to=folder))
    # Later versions of XLA write the list before and after its last passes.
    files = sorted(glob.glob(f'{folder}/*thunk_sequence*.txt'), key=lambda name: 'after' in name)
    return compiled, pathlib.Path(files[-1]).read_text('utf-8') if files else ''


def _placed(tree: Tree, device: jax.Device) -> Tree:
  here = SingleDeviceSharding(device)
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), tree)


def _row(
  compiled: jax.stages.Compiled, program: Program, parts: dict[str, int], command_buffers: int
) -> dict:
  """Returns what rows of decoding and training have in common."""
  return dict(
    moves=program.moves(),
    command_buffers=command_buffers,
    memory_bytes=step.memory_of(compiled),
    bytes=sum(parts.values()),
    bytes_by_part=parts,
  )


def _predicted(device: jax.Device, kernels: int, parts: dict[str, int], flops: float = 0.0) -> dict:
  """Returns microseconds with kernels in a CUDA graph, and with each launched by itself.

  Where FLOPs are given, they are what products take; without, products read their bytes.
  """
  bandwidth = datasheet_bandwidth(device.device_kind)
  moved = sum(size for part, size in parts.items() if not (flops and part.endswith(PRODUCTS)))
  reading = 1e6 * moved / bandwidth if bandwidth else 0.0
  products = 1e6 * flops / PRODUCT_FLOPS
  return dict(
    in_graph=round(kernels * IN_GRAPH_US + reading + products, 1),
    launched=round(kernels * LAUNCHED_US + reading + products, 1),
    kernel_us_in_graph=IN_GRAPH_US,
    kernel_us_launched=LAUNCHED_US,
    bytes_per_second=bandwidth,
    **(
      {'products': round(products, 1), 'product_flops_per_second': PRODUCT_FLOPS} if flops else {}
    ),
  )
