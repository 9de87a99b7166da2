"""Lower bounds of the time of one decoded token, from what it must read, as closed formulas.

  streamed   every weight that multiplies is read from memory, a looped core once per loop
  resident   the core of a CART stays on the chip and is read once per token
  launches   the kernels of a token times the cost of starting one

Bytes are those of prepared parameters (crt_jax/decoding/prepare.py): matrices in the decode dtype,
vectors in float32. The caches count as they are filled, not as they are allocated. Of an embedding
table that is not the output layer a token reads one row.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from crt_jax import accounting

ITEMSIZE = {'float32': 4, 'bfloat16': 2, 'float16': 2}
VECTOR_ITEMSIZE = 4


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The bytes that a step of `batch` rows reads, and its multiply-accumulates.

  Attributes:
    weights, resident_weights: with a core that is read in every loop, or once.
    cache, resident_cache: keys and values of the context, of all rows; the same distinction.
    multiplies: by weights and of attention.
  """

  weights: int
  resident_weights: int
  cache: int
  resident_cache: int
  multiplies: int

  @property
  def streamed(self) -> int:
    return self.weights + self.cache

  @property
  def resident(self) -> int:
    return self.resident_weights + self.resident_cache


def traffic(model: Any, dtype: str, batch: int = 1, context: int = 0) -> Traffic:
  """Returns what a decoding step reads.

  Args:
    model: fields of `config.model`; R of a CART is its `loops`.
    dtype: of matrices and caches.
    context: positions before this one.

  Raises:
    ValueError: a dtype or a model without a formula.
  """
  if dtype not in ITEMSIZE:
    raise ValueError(f'dtype={dtype!r} has no size here; use one of {", ".join(ITEMSIZE)}')
  size = ITEMSIZE[dtype]
  fields = accounting.resolve(model)
  pieces = dict(accounting.parts(model))
  table = pieces.pop('embedding').vectors
  is_tied = not pieces['head'].matrices
  looked_up = (not is_tied) + (pieces.pop('positions', None) is not None)
  rows = looked_up * batch * fields.width * VECTOR_ITEMSIZE
  weights = resident_weights = rows + (table * size if is_tied else 0)
  cache = resident_cache = 0
  multiplies = table if is_tied else 0
  attended_positions = min(context, fields.window - 1) if fields.window else context
  for part in pieces.values():
    one = (part.matrices + part.borrowed) * size + part.vectors * VECTOR_ITEMSIZE
    weights += part.applied * one
    resident_weights += part.copies * one
    one = 2 * batch * attended_positions * (part.attended // part.shared) * size
    cache += part.applied * one
    resident_cache += (1 if part.one_cache else part.applied) * one
    multiplies += part.multiplies + 2 * (attended_positions + 1) * part.applied * part.attended
  return Traffic(weights, resident_weights, cache, resident_cache, batch * multiplies)


@dataclasses.dataclass(frozen=True)
class Floor:
  """Lower bounds on a step's seconds, by cause; 0 if the machine is unknown."""

  streamed: float
  resident: float
  flops: float
  launches: float


def floor(
  traffic: Traffic, bandwidth: float, flops: float = 0.0, launches: int = 0, launch_cost: float = 0
) -> Floor:
  """Returns the lower bounds on a step's seconds.

  Args:
    bandwidth: bytes per second, as measured; 0 = unknown.
    flops: peak FLOP/s; 0 = unknown.
    launches: kernels of a step; launch_cost: seconds for each.
  """
  return Floor(
    streamed=traffic.streamed / bandwidth if bandwidth else 0.0,
    resident=traffic.resident / bandwidth if bandwidth else 0.0,
    flops=2 * traffic.multiplies / flops if flops else 0.0,
    launches=launches * launch_cost,
  )


def share(floor_seconds: float, seconds: float) -> float:
  """Returns how much of the measured time its floor explains, 0..1; 0 if either is unknown."""
  return floor_seconds / seconds if seconds > 0 else 0.0


# Memory bandwidth of one JAX device in GB/s, from the makers' datasheets. The first name that
# occurs in the device kind wins: longer ones first.
_BANDWIDTHS = (
  ('b200', 8000.0),  # NVIDIA B200, HBM3e
  ('h200', 4800.0),  # NVIDIA H200, HBM3e
  ('h100 nvl', 3900.0),  # NVIDIA H100 NVL
  ('h100 pcie', 2000.0),  # NVIDIA H100 PCIe
  ('h100', 3350.0),  # NVIDIA H100 SXM
  ('a100-sxm4-80gb', 2039.0),  # NVIDIA A100 80 GB SXM
  ('a100 80gb pcie', 1935.0),  # NVIDIA A100 80 GB PCIe
  ('a100', 1555.0),  # NVIDIA A100 40 GB
  ('l40s', 864.0),
  ('rtx 4090', 1008.0),
  ('rtx 3090', 936.0),
  ('tpu v6', 1640.0),  # Google Cloud TPU v6e
  ('tpu v5 lite', 819.0),  # Google Cloud TPU v5e
  ('tpu v5e', 819.0),
  ('tpu v5', 2765.0),  # Google Cloud TPU v5p
  ('tpu v4', 1228.0),
)


def datasheet_bandwidth(device_kind: str) -> float:
  """Returns the bytes per second of a `jax.Device.device_kind`; 0.0 if unknown."""
  kind = device_kind.lower()
  return next((1e9 * gigabytes for name, gigabytes in _BANDWIDTHS if name in kind), 0.0)
