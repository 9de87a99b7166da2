"""What the kernels that decode one text (`model.decode_kernel`) can read, and when they run."""

import dataclasses
from typing import TypeVar

import jax.numpy as jnp

from crt_jax import sharding
from crt_jax.models.attention_choice import is_nvidia
from crt_jax.schema import LayerFields, ModelConfig, TransformerConfig
from crt_jax.schema.fields import require
from crt_jax.types import Array, Params

Config = TypeVar('Config', bound=ModelConfig)


def check(config: ModelConfig) -> None:
  """Raises ValueError where the kernels do not know the layers of a configuration."""
  if config.decode_kernel != 'xla':
    reason = _unknown(config)
    require(not reason, _refusal(config, reason))


def check_texts(config: ModelConfig, rows: int, params: Params) -> None:
  """Raises ValueError where `decode_kernel` cannot decode so many texts together.

  Args:
    params: of the model, where they lie.
  """
  if config_for(config, params).decode_kernel == 'xla':
    return
  require(rows == 1, _refusal(config, f'decodes one text at a time, and there are {rows}'))
  devices = sharding.devices_of(params)
  require(len(devices) == 1, _refusal(config, f'runs on one device, and there are {len(devices)}'))
  device = devices[0]
  found = f'needs an NVIDIA GPU, and this is {device.platform} ({device.device_kind})'
  require(config.decode_kernel != 'pallas' or is_nvidia(device), _refusal(config, found))


def _unknown(config: ModelConfig) -> str:
  """Returns why the kernels do not know a configuration's layers; '' where they do."""
  if config.dtype == 'float64':
    return "takes no model.dtype='float64'"
  if not isinstance(config, LayerFields) or getattr(config, 'block', '') == 'cart':
    return f'knows no layers of a {config.name!r} of this kind'
  if isinstance(config, TransformerConfig) and config.latent_ratio:
    return 'knows no model.latent_ratio'
  if config.qk_norm:
    return 'knows no model.qk_norm'
  if config.kv_heads not in (0, config.heads):
    return f'knows no groups of heads (model.kv_heads={config.kv_heads})'
  return ''


def _refusal(config: ModelConfig, reason: str) -> str:
  return f"model.decode_kernel={config.decode_kernel!r} {reason}; use model.decode_kernel='xla'"


def config_for(config: Config, params: Params) -> Config:
  """Returns the configuration with the `decode_kernel` that can read these parameters.

  That is 'xla' unless their layers are separate (decoding/prepare.py), so training always runs it.
  """
  if config.decode_kernel == 'xla' or isinstance(params.get('layers'), tuple):
    return config
  return dataclasses.replace(config, decode_kernel='xla')


def is_single_row(kernel: str, x: Array) -> bool:
  """Returns whether a `decode_kernel` computes with x [..., C]: one position of one row."""
  return kernel != 'xla' and x.size == x.shape[-1] and x.dtype == jnp.float32
