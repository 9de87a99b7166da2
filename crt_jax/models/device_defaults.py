"""Chooses values for a model's 'auto' fields, which affect speed and memory but no results."""

import dataclasses
from typing import TypeVar

import jax

from crt_jax.models import attention_choice
from crt_jax.models.loss import CHUNK_MIB
from crt_jax.schema import CRTConfig, ModelConfig

Config = TypeVar('Config', bound=ModelConfig)

# Fields of a model's configuration that this module may decide.
DECIDED = ('attention_kernel', 'remat', 'unroll_scans', 'loss_chunk_mib')
GPU_CHUNK_MIB = 4096  # more chunks are slower (docs/performance.md, 4)
CPU_WRITTEN_OUT = 10  # layers times passes: so many take no longer to compile than a scan of them


def decide(config: Config, device: jax.Device | None) -> Config:
  """Returns a model's configuration with a concrete value for every 'auto' field.

  The value is the fastest one measured, with cuDNN attention on NVIDIA GPUs and for small CRTs on
  CPUs (docs/performance.md, 6), and elsewhere one that runs on any device.

  Args:
    config: a ModelConfig.
    device: the device to choose for; None = any.
  """
  is_gpu = device is not None and attention_choice.is_nvidia(device)
  kernel = config.attention_kernel
  if kernel == 'auto':
    kernel = 'cudnn' if is_gpu and attention_choice.fits(config, 'cudnn', device) else 'xla'
  config = dataclasses.replace(config, attention_kernel=kernel)
  is_fused = is_gpu and attention_choice.running(config)[0] in ('cudnn', 'triton')
  is_written_out = is_fused or (
    device is not None and device.platform == 'cpu' and _is_small(config)
  )
  remat, unroll_scans, chunk = config.remat, config.unroll_scans, config.loss_chunk_mib
  return dataclasses.replace(
    config,
    remat=('dots' if is_fused else 'none') if remat == 'auto' else remat,
    unroll_scans=('yes' if is_written_out else 'no') if unroll_scans == 'auto' else unroll_scans,
    loss_chunk_mib=chunk or (GPU_CHUNK_MIB if is_fused else CHUNK_MIB),
  )


def _is_small(config: ModelConfig) -> bool:
  """Returns whether it is a CRT of few layers and passes."""
  if not isinstance(config, CRTConfig) or not config.trains_in_parallel:
    return False
  return 0 < config.layers * config.schedule.depths()[-1] <= CPU_WRITTEN_OUT


def decided(config: ModelConfig) -> dict:
  """Returns the fields that say how the model is computed, of a configuration without 'auto'."""
  return {name: getattr(config, name) for name in DECIDED}
