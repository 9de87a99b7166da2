"""Rotary position angles: the integer frequencies of the CRT reference and the standard ones."""

import dataclasses
import math

import jax.numpy as jnp

from crt_jax.types import Array

KINDS = ('integer_reversed', 'integer', 'standard')


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How 'standard' frequencies are scaled for longer texts.

  Frequencies of at most `low` turns in `positions` positions are divided by `factor`, those of at
  least `high` turns are kept, and in between the two are interpolated linearly (Llama 3). Without
  positions all are divided ('linear').
  """

  factor: float
  low: float = 1.0
  high: float = 4.0
  positions: int = 0

  def __call__(self, frequency: Array) -> Array:
    turns = self.positions / (2 * math.pi) * frequency
    kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return frequency * (kept + (1 - kept) / self.factor)


def rotate(
  x_BxTxHxA: Array,
  position_BxT: Array,
  kind: str,
  theta: float = 1e4,
  scaling: Scaling | None = None,
) -> Array:
  """Rotates each head by its absolute position, so that cached keys stay valid.

  Args:
    position_BxT: integer positions; the leading dimension may be 1.
    kind: 'integer' turns the adjacent pair (2m, 2m+1) by p*m radians, 'integer_reversed' by -p*m
      (crt.md 2.3); 'standard' turns the pair (m, m + A/2) by p * theta^(-2m/A).
  Returns: the rotated array in the input's dtype.
  """
  pairs = x_BxTxHxA.shape[-1] // 2
  angle_dtype = jnp.promote_types(x_BxTxHxA.dtype, jnp.float32)
  if kind == 'standard':
    frequency = theta ** (-jnp.arange(pairs, dtype=angle_dtype) / pairs)
    frequency = frequency if scaling is None else scaling(frequency)
    angle = position_BxT.astype(angle_dtype)[..., None] * frequency[None, None]
  else:
    # The product is computed in integers, which is exact, and then converted to float.
    angle = (position_BxT[..., None] * jnp.arange(pairs)[None, None]).astype(angle_dtype)
    angle = -angle if kind == 'integer_reversed' else angle
  cos = jnp.cos(angle)[:, :, None, :].astype(x_BxTxHxA.dtype)
  sin = jnp.sin(angle)[:, :, None, :].astype(x_BxTxHxA.dtype)
  if kind == 'standard':
    a, b = jnp.split(x_BxTxHxA, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  # x cos + swapped(x) (-sin, sin): its transpose is of the same form, without strided slices.
  pairs_BxTxHxmx2 = x_BxTxHxA.reshape(*x_BxTxHxA.shape[:-1], pairs, 2)
  signed_sin = jnp.stack([-sin, sin], axis=-1)
  turned = pairs_BxTxHxmx2 * cos[..., None] + pairs_BxTxHxmx2[..., ::-1] * signed_sin
  return turned.reshape(x_BxTxHxA.shape)
