"""Measures the machine: reading memory, starting a kernel, one call."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax.decoding.sampling import Sampling
from crt_jax.models.registry import build
from crt_jax.types import Array
from experiments.latency.decoder import Decoder, Point, random_params, varied

WIDTH = 2048  # of the weight that is read
READS = 8  # of it in one call, which share the way to the device and back
# Of XLA: a GPU launches each kernel by itself instead of recording groups of them in a graph.
OUT_OF_GRAPH = {'xla_gpu_graph_min_graph_size': 10**6}
ALLOCATIONS = 2  # memory pages of a weight change the result by a third


@dataclasses.dataclass(frozen=True)
class Machine:
  """The measured speeds of a machine."""

  bandwidth: float
  launch: float
  dispatch: float
  round_trip: float


def measure(megabytes: int = 512, dtype: str = 'float32', repeats: int = 12) -> Machine:
  """Measures the default device.

  Args:
    megabytes: size of the weight that is read; more than any cache holds.
    repeats: of each; the best counts, since everything else can only be slower.
  """
  bandwidth = read_bandwidth(megabytes, dtype, repeats)
  return Machine(bandwidth, launch_cost(repeats), *call_costs(repeats))


def read_bandwidth(megabytes: int, dtype: str, repeats: int) -> float:
  """Returns the bytes per second of the best READS products of an [out, in] weight with a vector.

  On a CPU the weight is float32 whatever the dtype: there a product in 16 bits is no mere reading.
  """
  make, read = _reader(megabytes, 'float32' if jax.default_backend() == 'cpu' else dtype)
  best = 0.0
  for _ in range(ALLOCATIONS):
    weight_OxI = make()
    seconds = best_time(read, weight_OxI, repeats=repeats)
    best = max(best, READS * weight_OxI.nbytes / seconds)
  return best


@functools.cache
def _reader(megabytes: int, dtype: str) -> tuple[Callable[[], Array], Callable[[Array], Array]]:
  """Returns functions that make such a weight and read it, each compiled once per process."""
  numbers = megabytes * 2**20 // jnp.dtype(dtype).itemsize
  width = min(WIDTH, math.isqrt(numbers))
  shape = jax.ShapeDtypeStruct((numbers // width, width), dtype)

  @jax.jit
  def read(weight_OxI: Array):
    ones_1xI = jnp.ones((1, width), dtype)

    def one(_: int, x_1xI: Array):
      y_1xO = jax.lax.dot_general(x_1xI, weight_OxI, (((1,), (1,)), ((), ())))
      # Only part of it is used; the barrier makes XLA compute all of it.
      return ones_1xI + 1e-3 * jax.lax.optimization_barrier(y_1xO)[:, :width]

    return jax.lax.fori_loop(0, READS, one, ones_1xI)

  return jax.jit(lambda: varied(shape).astype(dtype)), read


def launch_cost(repeats: int, options: dict[str, Any] | None = None) -> float:
  """Returns the seconds per kernel of a decoding program with negligible bytes and arithmetic.

  A chain of single operations would not do: XLA:CPU compiles a small loop into one function.

  Args:
    options: of the compiler, such as OUT_OF_GRAPH.
  """
  toy = dict(name='transformer', vocab_size=64, width=32, heads=2, layers=8, rotary='standard')
  point = Point(dispatch=32)
  model, params = random_params(build(toy), point.dtype)
  decoder = Decoder(model, params, point, 64, Sampling(temperature=0), options)
  decoder.time(point.dispatch)
  return min(decoder.time(repeats * point.dispatch)) / decoder.launches


def call_costs(repeats: int) -> tuple[float, float]:
  """Returns dispatch and round_trip of `Machine`."""
  few, one = jnp.ones(8, jnp.float32), jax.jit(jnp.sin)

  def calls(x: Array):
    for _ in range(100):
      x = one(x)
    return x

  return best_time(calls, few, repeats=repeats) / 100, best_time(one, few, repeats=100 * repeats)


def matrix_product(dtype: str, size: int, products: int = 20) -> float:
  """Returns the FLOP/s of a square product [size, size] of `dtype` on one device, best of three."""
  generator = np.random.default_rng(0)
  a, b = (jnp.asarray(generator.standard_normal((size, size)), dtype) for _ in range(2))
  b = b / size**0.5  # keeps repeated products from growing

  @jax.jit
  def chain(a: Array, b: Array):
    return jax.lax.fori_loop(0, products, lambda _, a: (a @ b).astype(a.dtype), a)

  return 2 * products * size**3 / best_time(chain, a, b, repeats=3)


def best_time(function: Callable, *arguments: Any, repeats: int) -> float:
  """Returns the least seconds of several calls, after one that compiles."""
  jax.block_until_ready(function(*arguments))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def quantiles(seconds: list[float]) -> tuple[float, float]:
  """Returns median and 95th percentile."""
  if len(seconds) == 1:
    return seconds[0], seconds[0]
  return statistics.median(seconds), statistics.quantiles(seconds, n=20, method='inclusive')[-1]
