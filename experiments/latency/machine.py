"""What the machine can do, measured before anything else: reading, starting a kernel, a call."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crt_jax.decoding.sampling import Sampling
from crt_jax.models.base import build
from crt_jax.types import Array
from experiments.latency.decoder import Decoder, Point, random_params

WIDTHS = (1120, 2048, 8192)  # of the weights whose product with one vector is timed
ALLOCATIONS = 2  # of each: which pages a weight gets changes the result by a third


@dataclasses.dataclass(frozen=True)
class Machine:
  """Attributes:
  bandwidth: bytes/s of the fastest product of an [out, in] weight with one vector.
  launch: seconds for one more kernel inside a compiled program.
  dispatch: seconds for one more call of a compiled program from Python, without waiting for it.
  round_trip: the same, waiting for its result.
  """

  bandwidth: float
  launch: float
  dispatch: float
  round_trip: float


def measure(megabytes: int = 512, repeats: int = 12) -> Machine:
  """Measures the default device.

  Args:
    megabytes: size of the weight that is read; more than any cache holds.
    repeats: of each; the best counts, since everything else can only be slower.
  """
  return Machine(read_bandwidth(megabytes, repeats), launch_cost(repeats), *call_costs(repeats))


def read_bandwidth(megabytes: int, repeats: int) -> float:
  """Bytes per second of the best [out, in] matrix-vector product over such a weight, float32."""
  best = 0.0
  product = jax.jit(lambda w, x: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
  for width in WIDTHS * ALLOCATIONS:
    weight_OxI = jnp.ones((megabytes * 2**20 // 4 // width, width), jnp.float32)
    seconds = best_time(product, weight_OxI, jnp.ones((1, width), jnp.float32), repeats=repeats)
    best = max(best, weight_OxI.nbytes / seconds)
  return best


def launch_cost(repeats: int) -> float:
  """Seconds per kernel of a decode program whose bytes and arithmetic are negligible.

  A chain of single operations would not do: XLA:CPU compiles a small loop into one function.
  """
  toy = dict(name='transformer', vocab_size=64, width=32, heads=2, layers=8, rotary='standard')
  point = Point(dispatch=32)
  model, params = random_params(build(toy), point.dtype)
  decoder = Decoder(model, params, point, 64, Sampling(temperature=0))
  decoder.time(point.dispatch)
  return min(decoder.time(repeats * point.dispatch)) / decoder.launches


def call_costs(repeats: int) -> tuple[float, float]:
  """dispatch and round_trip of `Machine`."""
  few, one = jnp.ones(8, jnp.float32), jax.jit(jnp.sin)

  def calls(x: Array):
    for _ in range(100):
      x = one(x)
    return x

  return best_time(calls, few, repeats=repeats) / 100, best_time(one, few, repeats=100 * repeats)


def best_time(function: Callable, *arguments: Any, repeats: int) -> float:
  """Least seconds of a call, after one that compiles."""
  jax.block_until_ready(function(*arguments))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def quantiles(seconds: list[float]) -> tuple[float, float]:
  """Median and 95th percentile."""
  if len(seconds) == 1:
    return seconds[0], seconds[0]
  return statistics.median(seconds), statistics.quantiles(seconds, n=20, method='inclusive')[-1]
