"""Compiles ahead of time: what fits, what devices send, what a GPU executes.

  python -m benchmarks.aot --output=benchmarks/results/aot.json
  python -m benchmarks.aot --output=benchmarks/results/aot.json --only='crt_d5_c1120 cart_*'
  python -m benchmarks.aot --output=benchmarks/results/aot_gpu.json --target=h100
  python -m benchmarks.aot --output=gpu.json --target=h100,a100 --decode=crt_d1_c2048

Nothing runs and no accelerator is needed: 8 simulated CPU devices, and TPU v5e slices of 16 and 256
chips where `libtpu` is installed (pip install libtpu, of the version that jax[tpu] names). A
result that is in the file already is kept, so the command goes on where it was stopped: hours on
two cores for all configs. Several may add to one file, each with its own --target or --only.

The batch is the config's own. Its rows lie on `data` x `fsdp`; devices beyond the rows split heads,
hidden units and vocabulary (`tensor`), and where these do not divide, the batch grows to one row a
device. Weights are gathered by layer, which needs the least memory. `--scaling` compiles a few
configs on 1, 2, 4 and 8 CPU devices instead, in each of WAYS, with a batch that grows with them.
`--slices` compiles for two TPU v5e slices of 16 chips and for four nodes of eight H100, which a
slower network connects, with `data` or `fsdp` across it (config.mesh.across).

For a GPU (h100, h200, a100: benchmarks/targets) decoding of the models in configs/latency.py and
the training steps of benchmarks.train are compiled, see benchmarks/gpu_programs.py; rows of several
versions of JAX lie side by side, as 'h100, jax 0.10.2'.
--claims=retrofit compiles what a claim trains at --size=gpu, and predicts the minutes of its runs.
"""

import fcntl
import fnmatch
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # libtpu looks for a machine that is not there
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from multiprocessing.connection import Connection

import jax
import ml_collections
from absl import app, flags, logging
from jax.experimental import topologies

import configs
import crt_jax
from benchmarks.cases import CASES
from benchmarks.claim_programs import claim_of, claimed
from benchmarks.collectives import collectives
from benchmarks.gpu_programs import TARGETS as GPUS
from benchmarks.gpu_programs import decoded, decoding_of, devices_of_nodes, row_label, training_of
from crt_jax import accounting, json_text, sharding
from crt_jax.cli import config_files
from crt_jax.keys import random_key
from crt_jax.runs.provenance import commit, origin
from crt_jax.training import sharding_table, step

_OUTPUT = flags.DEFINE_string('output', None, 'JSON file that results are added to.', required=True)
_ONLY = flags.DEFINE_spaceseplist(
  'only', [], "Names or patterns of configs, as 'crt_d5_c1120 crt_341m*'; all when left out."
)
_TARGET = flags.DEFINE_list(
  'target',
  ['cpu:8', 'v5e:4x4', 'v5e:16x16'],
  f'What to compile for; also {", ".join(sorted(GPUS))}.',
)
_DECODE = flags.DEFINE_list(
  'decode', [], 'For a GPU: models to decode; without --train and --claims, all.'
)
_TRAIN = flags.DEFINE_list('train', [], 'For a GPU: training steps; all, likewise.')
_CLAIMS = flags.DEFINE_list('claims', [], 'For a GPU: claims whose runs of --size=gpu to compile.')
_SLICES = flags.DEFINE_bool('slices', False, 'What is sent between slices or nodes instead.')
_SCALING = flags.DEFINE_bool('scaling', False, 'The weak-scaling table instead.')

GIB = 2**30
MEMORY = {'v5e': 16 * GIB}  # of one chip, of which the runtime keeps some
SCALED = ('crt_d5_c1120', 'transformer_n12-heads=16', 'cart_d1024')
SLICES = ('2*v5e:4x4', '4*h100:8')
# How rows and weights may lie: the axis of the mesh, and config.mesh.gather.
WAYS = {
  'data': ('data', 'step'),
  'fsdp': ('fsdp', 'step'),
  'fsdp by layer': ('fsdp', 'layer'),
}
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
# On a CPU the code is not wanted, only the program before it: LLVM may do as little as it can.
CPU_OPTIONS: dict[str, Any] = {'xla_backend_optimization_level': 0}
if jax.__version_info__ < (0, 11):  # later ones do not know it
  CPU_OPTIONS['xla_cpu_use_fusion_emitters'] = False


def specs() -> dict[str, str]:
  """Returns name -> FILE:ARGUMENTS of every training config."""
  folder, found = pathlib.Path(configs.__file__).parent, {}
  for file in sorted(folder.glob('*.py')):
    module = config_files._execute(file)
    if not hasattr(module, 'get_config') or file.stem.startswith('latency'):
      continue
    for given in getattr(module, 'ARGUMENTS', ('',)):
      spec = f'{file}:{given}' if given else str(file)
      found[config_files.name(spec)] = spec
  return found


def devices_of(target: str) -> list:
  """Returns the devices of 'cpu:N', or of a GPU or a TPU slice as 'v5e:4x4' that is not there.

  Several nodes or slices are '4*h100:8' and '2*v5e:4x4'.
  """
  count, _, one = target.rpartition('*')
  kind, _, size = one.partition(':')
  if kind in GPUS:
    return devices_of_nodes(kind, int(count or 1), int(size or 1))
  if kind == 'cpu':
    return jax.devices()[: int(size)]
  slices = {'num_slices': int(count)} if count else {}
  return topologies.get_topology_desc(platform='tpu', topology_name=one, **slices).devices


def plan(config: ConfigDict, count: int) -> tuple[dict[str, int], int]:
  """Returns the mesh for so many devices, and the rows of the batch; see the top."""
  rows = config.data.batch_size // config.train.accumulation
  split = math.gcd(rows, count)
  tensor = count // split
  model = crt_jax.build(config.model)
  try:
    mesh = sharding.make_abstract_mesh(1, split, tensor)
    shapes = jax.eval_shape(model.init, random_key(0))
    sharding.param_shardings(model.axes(), shapes, mesh)
  except sharding.Unfit:
    return dict(data=1, fsdp=count, tensor=1), count * config.train.accumulation
  return dict(data=1, fsdp=split, tensor=tensor), config.data.batch_size


def compile_step(config: ConfigDict, sizes: dict[str, int], batch: int, devices: list) -> dict:
  """Returns what compiling the deepest training step says of it."""
  with config.unlocked():
    config.data.batch_size = batch
  model = crt_jax.build(config.model, devices[0])
  placed = ml_collections.ConfigDict(sizes | {'across': config.mesh.across})
  mesh = sharding.make_mesh(placed, devices)
  steps = step.steps_of(config, model, mesh)
  depth = (model.depths() or (None,))[-1]
  length = config.data.sequence_length
  tokens = batch * length
  start = time.process_time()
  lowered = steps.make(depth).lower(steps.abstract, step.abstract_batch(config, mesh))
  options = CPU_OPTIONS if devices[0].platform == 'cpu' else None
  compiled = lowered.compile(compiler_options=options)
  seconds = time.process_time() - start
  # A described topology of GPUs says that all nodes are one slice.
  kind = 'slice_index' if devices[0].platform == 'tpu' else 'process_index'
  slices = [getattr(device, kind, 0) for device in mesh.devices.flat]
  sent = collectives(compiled.as_text() or '', slices if len(set(slices)) > 1 else ())
  return {
    'mesh': sizes,
    'batch_size': batch,
    'depth': depth,
    'flops_a_device': tokens * accounting.model_flops(config.model, length, depth) / len(devices),
    'bytes_a_device': step.memory_of(compiled),
    'state_bytes_a_device': sharding_table.shard_bytes(steps.abstract),
    'state_bytes': sharding_table.whole_bytes(steps.abstract),
    'collectives': {kind: vars(each) for kind, each in sent.items()},
    'sent_bytes_a_device': sum(each.sent_bytes for each in sent.values()),
    'network_bytes_a_device': sum(each.network_bytes for each in sent.values()),
    'cpu_seconds_to_compile': round(seconds, 1),
  }


def result_of(spec: str, target: str) -> dict:
  """Returns the row of one config on one target, gathered by layer where the default fails."""
  gather = config_files.load(spec).mesh.gather
  if target.startswith('cpu'):
    return compile_with(spec, target, gather) | {'gather': gather}
  found = apart(compile_with, spec, target, gather)
  if gather != 'layer' and not found.get('fits'):
    by_layer = apart(compile_with, spec, target, 'layer')
    if by_layer.get('fits'):
      return by_layer | {'gather': 'layer', gather: found.get('error', 'does not fit')}
  return found | {'gather': gather}


def compile_with(spec: str, target: str, gather: str) -> dict:
  """Returns what compiling it says, or why it cannot be compiled."""
  config = config_files.load(spec)
  devices = devices_of(target)
  config.mesh.gather = gather
  sizes, batch = plan(config, len(devices))
  try:
    found = compile_step(config, sizes, batch, devices)
  except jax.errors.JaxRuntimeError as error:  # a TPU compiler refuses what does not fit
    return {'mesh': sizes, 'batch_size': batch, 'fits': False, 'error': str(error)[:300]}
  memory = MEMORY.get(target.partition(':')[0])
  return found | ({'fits': found['bytes_a_device'] <= memory} if memory else {})


def scaling(spec: str, count: int, axis: str, gather: str) -> dict:
  """Returns a row of the weak-scaling table: 8 rows of the batch for each device, no dropout."""
  config = config_files.load(spec)
  with config.unlocked():
    config.model.dropout = 0.0
  config.mesh.gather = gather
  sizes = dict(data=1, fsdp=1, tensor=1) | {axis: count}
  batch = 8 * count * config.train.accumulation
  return compile_step(config, sizes, batch, jax.devices()[:count])


def across_slices(spec: str, target: str, axis: str) -> dict:
  """Returns a row of the table of slices: a row of the batch for each device, no dropout."""
  config = config_files.load(spec)
  devices = devices_of(target)
  slices = int(target.partition('*')[0])
  with config.unlocked():
    config.model.dropout = 0.0
    config.model.attention_kernel = 'xla'  # sends what cuDNN's does, and needs no library
    config.mesh.across = axis
  sizes = dict(data=slices, fsdp=len(devices) // slices, tensor=1)
  if axis == 'fsdp':
    sizes = dict(data=1, fsdp=len(devices), tensor=1)
  return compile_step(config, sizes, len(devices) * config.train.accumulation, devices)


def main(argv: list[str]) -> None:
  del argv
  prepare_process()
  targets = list(filter(is_there, _TARGET.value))
  gpus, others = ([t for t in targets if (t in GPUS) is on_gpu] for on_gpu in (True, False))
  if gpus:
    programs = gpu_programs()
    asked = chosen_programs(programs)
    compile_all(asked, {row_label(target): (run_job, target) for target in gpus}, list(programs))
  every = specs()
  jobs: dict[str, tuple] = {target: (result_of, target) for target in others}
  if _SCALING.value:
    jobs = {f'{way} {n}': (scaling, n, *WAYS[way]) for way in WAYS for n in (1, 2, 4, 8)}
  if _SLICES.value:
    targets = list(filter(is_there, SLICES))
    jobs = {f'{t} {axis}': (across_slices, t, axis) for t in targets for axis in ('data', 'fsdp')}
  if jobs:
    few = SCALED if _SCALING.value or _SLICES.value else ['*']
    names = chosen(every, _ONLY.value or few)
    compile_all({name: every[name] for name in names}, jobs, list(every))


def compile_all(sources: dict[str, Any], jobs: dict[str, tuple], every: list[str]) -> None:
  """Adds to the file what each job makes of each source, if it is not there yet."""
  path = pathlib.Path(_OUTPUT.value)
  for name, source in sources.items():
    for label, (job, *arguments) in jobs.items():
      if label in read(path)['results'].get(name, {}):
        continue
      try:
        found = job(source, *arguments)
      except ValueError as error:  # a program that benchmarks/collectives.py cannot read
        print(f'{name:32} {label:10} left out: {error}', flush=True)
        continue
      print(f'{name:32} {label:10} {describe(found)}', flush=True)
      keep(path, name, label, found, every)


def gpu_programs() -> dict[str, tuple]:
  """Returns label -> job and name of every program for a GPU; of claims where any is asked for."""
  kinds = [('decode', decoding_of, decoded()), ('train', training_of, CASES)]
  kinds += [('claim', claim_of, claimed())] if _CLAIMS.value else []
  return {f'{kind} {name}': (job, name) for kind, job, names in kinds for name in names}


def chosen_programs(programs: dict[str, tuple]) -> dict[str, tuple]:
  """Returns those that --decode, --train and --claims ask for; all where none does."""
  asked = []
  for flag in (_DECODE, _TRAIN, _CLAIMS):
    kind = flag.name.removesuffix('s')
    for name in flag.value:
      found = [each for each in programs if f'{each}/'.startswith(f'{kind} {name}/')]
      if not found:
        raise app.UsageError(f'--{flag.name}={name}: there are {", ".join(programs)}')
      asked += found
  return {label: programs[label] for label in asked or programs}


def run_job(source: tuple, target: str) -> dict:
  """Returns the row of a program for a GPU."""
  job, name = source
  try:
    return job(name, target)
  except jax.errors.JaxRuntimeError as error:  # such as cuDNN's library that is not there
    return {'error': str(error)[:300]}


def prepare_process() -> None:
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_enable_compilation_cache', False)  # XLA writes down what it compiles only
  logging.set_verbosity(logging.ERROR)  # not which parameter takes which axis, for each config


def apart(job: Callable[..., dict], *arguments: Any) -> dict:
  """Runs a job in a process of its own, which libtpu takes along when it crashes.

  Raises:
    ValueError: the job did, or its process was ended from outside.
  """
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(target=_send_result, args=(sender, job, *arguments))
  process.start()
  sender.close()
  try:
    found = receiver.recv()
  except EOFError:
    found = None
  process.join()
  if found is None and -(process.exitcode or 0) in CRASHES:
    return {'error': 'the compiler crashed'}
  if found is None:
    raise ValueError(f'its process ended with code {process.exitcode}')
  if isinstance(found, ValueError):
    raise found
  return found


def _send_result(sender: Connection, job: Callable[..., dict], *arguments: Any) -> None:
  prepare_process()
  try:
    sender.send(job(*arguments))
  except ValueError as error:
    sender.send(error)


def read(path: pathlib.Path) -> dict:
  return json.loads(path.read_text('utf-8')) if path.exists() else {'results': {}}


def keep(path: pathlib.Path, name: str, label: str, found: dict, every: list[str]) -> None:
  """Adds one result to the file, which other processes may be adding to; `every` gives an order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    fcntl.flock(folder, fcntl.LOCK_EX)
    results = read(path)['results']
    results.setdefault(name, {})[label] = found | {'jax': jax.__version__, 'commit': commit()}
    ordered = {name: results[name] for name in (*every, *results) if name in results}
    made = origin() | {'libtpu': libtpu_version()}
    json_text.write(path, {'results': ordered, 'configs': every, 'origin': made})
  finally:
    os.close(folder)  # and with it the lock


def libtpu_version() -> str | None:
  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return None


def chosen(every: dict[str, str], patterns: Sequence[str]) -> list[str]:
  """Returns the names that the patterns ask for, in their order."""
  found = {}
  for pattern in patterns:
    matching = fnmatch.filter(every, pattern)
    if not matching:
      raise app.UsageError(f'--only={pattern}: there are {", ".join(every)}')
    found |= dict.fromkeys(matching)
  return list(found)


def is_there(target: str) -> bool:
  """Returns whether it can be compiled for here; says so where not."""
  try:
    return bool(devices_of(target))
  except (RuntimeError, ValueError) as error:
    print(f'{target}: left out, {str(error).splitlines()[0][:160]}')
    return False


def describe(found: dict) -> str:
  if 'error' in found:
    return found['error'].splitlines()[0]
  if 'predicted_us' in found:
    kernels = found.get('kernels_per_token', found.get('kernels'))
    moved = sum(move['bytes'] for move in found['moves']) / 2**20
    predicted = found['predicted_us']['in_graph']
    return f'{kernels} kernels, {moved:.1f} MiB copied, predicted {predicted:,.0f} us'
  fits = {True: 'fits', False: 'does not fit', None: ''}[found.get('fits')]
  return (
    f'{found["bytes_a_device"] / GIB:7.2f} GiB a device  '
    f'{found["sent_bytes_a_device"] / 2**20:9.1f} MiB sent  '
    f'{found["cpu_seconds_to_compile"]:6.1f} CPU s  {fits}'
  )


if __name__ == '__main__':
  app.run(main)
