"""What a device can do at best: copying, reading, matrix products, starting kernels.

  python -m benchmarks.ceilings --output=ceilings.json
  python -m benchmarks.ceilings --parts=               which device, driver, packages, load

Nothing that runs on it can be faster; benchmarks.accelerator measures this first.
"""

import importlib.metadata
import os
import shutil
import subprocess

import jax
from absl import flags

from benchmarks import results
from crt_jax import cli
from experiments.latency import machine
from experiments.latency.decoder import varied
from experiments.latency.floors import datasheet_bandwidth

PACKAGES = (
  'jax', 'jaxlib', 'jax-cuda13-plugin', 'jax-cuda12-plugin', 'flax', 'optax', 'orbax-checkpoint',
  'numpy', 'ml-collections', 'grain', 'array-record', 'tensorboardX', 'torch', 'transformers',
)  # fmt: skip
GPU = 'driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,utilization.gpu'
COPIES = 8  # in one call


def main(argv: list[str]) -> None:
  del argv
  found = facts()
  for name in _PARTS.value:
    found |= PARTS[name](*(SMOKE if _SMOKE.value else FULL))
  results.publish(found)


def facts() -> dict:
  """Returns the device and what is installed, beside what every result says."""
  device = jax.devices()[0]
  return dict(
    memory_bytes=(device.memory_stats() or {}).get('bytes_limit'),
    datasheet_bandwidth=datasheet_bandwidth(device.device_kind),
    gpu=gpu(),
    cores=len(os.sched_getaffinity(0)),
    load=os.getloadavg()[0],
    packages={name: version(name) for name in PACKAGES},
  )


def gpu() -> str:
  """Returns what nvidia-smi says of GPU; '' where there is none."""
  if not shutil.which('nvidia-smi'):
    return ''
  command = ['nvidia-smi', f'--query-gpu={GPU}', '--format=csv']
  return subprocess.run(command, capture_output=True, encoding='utf-8', timeout=20).stdout.strip()


def version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def copying(megabytes: int, size: int, repeats: int) -> dict:
  """Returns the bytes read and bytes written per second by a program that adds one to an array."""
  del size
  shape = jax.ShapeDtypeStruct((megabytes * 2**18,), 'float32')
  make = jax.jit(lambda: varied(shape))
  add = jax.jit(lambda x: jax.lax.fori_loop(0, COPIES, lambda _, x: x + 1.0, x))
  x = make()
  seconds = machine.best_time(add, x, repeats=repeats)
  return dict(copy_bytes_per_second=2 * COPIES * x.nbytes / seconds)


def reading(megabytes: int, size: int, repeats: int) -> dict:
  """Returns the bytes per second that products with one vector read, by dtype of the weight."""
  del size
  dtypes = ('float32', 'bfloat16')
  found = {dtype: machine.read_bandwidth(megabytes, dtype, repeats) for dtype in dtypes}
  return dict(read_bytes_per_second=found)


def products(megabytes: int, size: int, repeats: int) -> dict:
  """Returns the FLOP/s of square products of random matrices."""
  del megabytes, repeats
  return dict(
    product_size=size,
    product_flops_per_second={
      dtype: machine.matrix_product(dtype, size) for dtype in ('bfloat16', 'float32')
    },
  )


def launches(megabytes: int, size: int, repeats: int) -> dict:
  """Returns the seconds of one more kernel: in a CUDA graph, by itself, called from Python."""
  del megabytes, size
  dispatch, round_trip = machine.call_costs(repeats)
  return dict(
    kernel_seconds_in_graph=machine.launch_cost(repeats),
    kernel_seconds_launched=machine.launch_cost(repeats, machine.OUT_OF_GRAPH),
    call_seconds=dispatch,
    round_trip_seconds=round_trip,
  )


# megabytes, size of a matrix, repeats
FULL, SMOKE = (1024, 8192, 12), (1, 128, 1)
PARTS = dict(copy=copying, product=products, launches=launches, read=reading)
_PARTS = flags.DEFINE_list('parts', list(PARTS), f'Of {", ".join(PARTS)}.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Toy sizes: does everything run?')

if __name__ == '__main__':
  cli.run(main)
