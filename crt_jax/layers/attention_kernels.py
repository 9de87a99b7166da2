"""Attention over a whole sequence without its T x T scores in memory, by kernels of each platform.

  xla     no kernel: layers/attention.py materialises the scores; every platform, dtype and dropout
  cudnn   cuDNN's flash attention, through jax.nn.dot_product_attention; NVIDIA GPUs, 16 bits
  splash  jax.experimental.pallas.ops.tpu.splash_attention; TPUs
  triton  layers/flash_attention.py, which alone drops attention weights too; NVIDIA GPUs

They are told of causality and window and never given a mask or bias, which would be as large as the
scores. None reads a cache: there 'xla' runs whatever is asked for, and where weights are dropped,
in place of the first two. models/attention_choice.py says what that makes of a configuration.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from crt_jax import sharding
from crt_jax.rounding import round_up
from crt_jax.types import Array

KERNELS = ('xla', 'cudnn', 'splash', 'triton')
# What splash and triton call what their backward pass reads; cuDNN's has its operation's name.
FUSED_ATTENTION = 'fused_attention'
CUDNN_ATTENTION = 'dot_product_attention_fwd_wrapper'
WIDTH_MULTIPLE = 8  # of head widths that the kernels take; others are padded
SPLASH_BLOCKS = (512, 256, 128)  # positions a tile; the largest that divides the padded sequence


class Dropped(NamedTuple):
  """The share of attention weights that is dropped, and seeds that masks follow from."""

  rate: float
  seed_BxH: Array


def fused_attention(
  kernel: str,
  q_BxTxHxA: Array,
  k_BxTxGxA: Array,
  v_BxTxGxA: Array,
  window: int,
  dropped: Dropped | None = None,
) -> Array:
  """Returns causal softmax attention within one sequence, by one of KERNELS but 'xla'.

  Args:
    window: positions that each position sees, itself included; 0 = all before it.
    dropped: weights that 'triton' drops; None = none.

  Returns: mixed values [B, T, H, A] in the dtype of q, and zeros behind them where the kernel needs
    wider heads; H is a multiple of G.
  """
  if kernel == 'triton':
    return triton_attention(q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, window, dropped)
  run = dict(cudnn=dot_product, splash=splash_attention)[kernel]
  return with_padded_heads(run, q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, window)


def with_padded_heads(
  run: Callable[[Array, Array, Array, float, int], Array],
  q_BxTxHxA: Array,
  k_BxTxGxA: Array,
  v_BxTxGxA: Array,
  window: int,
) -> Array:
  """Calls `run` with heads padded by zeros to a multiple of 8 and the scale of the true width.

  Zeros add nothing to a score, and mix to zeros, which stay behind the result of the true width:
  cutting them off would copy it.
  """
  length, width = q_BxTxHxA.shape[1], q_BxTxHxA.shape[-1]
  pad = [(0, 0)] * 3 + [(0, -width % WIDTH_MULTIPLE)]
  q, k, v = (jnp.pad(a, pad) for a in (q_BxTxHxA, k_BxTxGxA, v_BxTxGxA))
  return run(q, k, v, width**-0.5, window if window < length else 0)


def dot_product(
  q: Array, k: Array, v: Array, scale: float, window: int, implementation: str = 'cudnn'
) -> Array:
  """Runs jax.nn.dot_product_attention on every device's own rows and heads.

  The implementation 'xla' computes the same on any platform, for tests.
  """
  run = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    is_causal=True,
    local_window_size=(window - 1, 0) if window else None,
    implementation=implementation,
  )
  return _per_device(run)(q, k, v)


def splash_attention(
  q_BxTxHxA: Array,
  k_BxTxGxA: Array,
  v_BxTxGxA: Array,
  scale: float,
  window: int,
  interpret: bool = False,
) -> Array:
  """Runs splash attention on every device's own rows and heads; on a CPU by `interpret`, slowly.

  The sequence is padded to whole tiles. Padding stands behind the text, where no position of it
  looks.
  """

  def on_device(q_BxTxHxA: Array, k_BxTxGxA: Array, v_BxTxGxA: Array):
    _, length, heads, _ = q_BxTxHxA.shape
    padded = round_up(length, SPLASH_BLOCKS[-1])
    pad = [(0, 0), (0, padded - length), (0, 0), (0, 0)]
    q, k, v = (jnp.pad(a, pad).swapaxes(1, 2) for a in (q_BxTxHxA, k_BxTxGxA, v_BxTxGxA))
    kernel = _splash_kernel(heads, padded, window, interpret)
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)[:, :length]

  return _per_device(on_device)(q_BxTxHxA * scale, k_BxTxGxA, v_BxTxGxA)


def _splash_kernel(heads: int, length: int, window: int, interpret: bool) -> Callable[..., Any]:
  # Imported here: nobody else needs Pallas, which takes a while.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  shape = (length, length)
  mask = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
  block = next(size for size in SPLASH_BLOCKS if length % size == 0)
  return splash.make_splash_mha(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=FUSED_ATTENTION,
    interpret=interpret,
  )


def triton_attention(
  q_BxTxHxA: Array,
  k_BxTxGxA: Array,
  v_BxTxGxA: Array,
  window: int,
  dropped: Dropped | None = None,
  interpret: bool = False,
) -> Array:
  """Runs layers/flash_attention.py on every device's own rows and heads."""
  from crt_jax.layers import flash_attention  # imports Pallas

  batch, length, heads, width = q_BxTxHxA.shape
  rate, seed_BxH = 0.0, jnp.zeros((batch, heads), jnp.uint32)
  if dropped is not None:
    rate, seed_BxH = dropped.rate, dropped.seed_BxH
  window = window if window < length else 0
  options = flash_attention.Options(width**-0.5, window, rate, interpret)
  run = functools.partial(flash_attention.attention, options=options)
  return _per_device(run)(q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, seed_BxH)


def _per_device(run: Callable[..., Array]):
  """Returns `run` on each device's rows and heads: the compiler cannot split a kernel by itself."""

  def mapped(q_BxTxHxA: Array, k_BxTxGxA: Array, v_BxTxGxA: Array, *seed_BxH: Array):
    axes = sharding.shared_axes()
    if math.prod(axes.values()) == 1:
      return run(q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, *seed_BxH)
    row_axes = tuple(axis for axis in sharding.BATCH_AXES if axis in axes)
    rows = math.prod(axes[axis] for axis in row_axes)
    over_rows = row_axes if rows > 1 and q_BxTxHxA.shape[0] % rows == 0 else None
    over_heads = None if k_BxTxGxA.shape[2] % axes['tensor'] else 'tensor'
    spec = PartitionSpec(over_rows, None, over_heads, None)
    specs = (spec,) * 3 + (PartitionSpec(over_rows, over_heads),) * len(seed_BxH)
    split = jax.shard_map(
      run, in_specs=specs, out_specs=spec, axis_names=set(axes), check_vma=False
    )
    return split(q_BxTxHxA, k_BxTxGxA, v_BxTxGxA, *seed_BxH)

  return mapped
