"""Which attention kernel a configuration runs, what it needs, and what runs in its place."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.extend
import jax.numpy as jnp

from crt_jax import sharding
from crt_jax.layers import attention_kernels
from crt_jax.schema import LayerFields, ModelConfig, TransformerConfig
from crt_jax.schema.fields import require
from crt_jax.types import Array, Params

Config = TypeVar('Config', bound=ModelConfig)

AMPERE, HOPPER = 8.0, 9.0  # compute capabilities
# cuDNN's widest head: on every GPU that it serves, and from Hopper on.
CUDNN_WIDTH, CUDNN_WIDTH_HOPPER = 128, 256
NVIDIA = ('nvidia', 'tesla', 'geforce', 'quadro', 'titan')  # how its drivers name what it makes

_keeps = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  jax.checkpoint_policies.save_only_these_names(attention_kernels.FUSED_ATTENTION),
)


def keep_products(primitive: jax.extend.core.Primitive, *args: Any, **params: Any) -> bool:
  """The policy that keeps products of activations with weights and what a fused attention kernel
  returns, and computes anew what lies between: norms, activations, rotary angles, materialised
  attention."""
  return primitive.name == attention_kernels.CUDNN_ATTENTION or _keeps(primitive, *args, **params)


def check(config: ModelConfig) -> None:
  """Raises ValueError where no device could run the kernels of a model's configuration.

  Args:
    config: has attention_kernel, decode_kernel, dropout, dtype and head_width (schema/model.py).
  """
  if config.decode_kernel != 'xla':
    reason = _undecoded(config)
    require(not reason, _refusal(config, reason))
  kernel = config.attention_kernel
  dtypes = dict(cudnn=('bfloat16', 'float16'), splash=('bfloat16', 'float32'))
  if kernel in ('xla', 'auto') or config.dropout:
    return
  if config.dtype not in dtypes[kernel]:
    raise ValueError(
      f"model.attention_kernel={kernel!r} needs model.dtype='bfloat16' (is {config.dtype!r}); "
      "set it, or model.attention_kernel='xla'"
    )
  if kernel == 'cudnn' and config.head_width > CUDNN_WIDTH_HOPPER:
    raise ValueError(
      f"model.attention_kernel='cudnn' takes heads of up to {CUDNN_WIDTH_HOPPER}, and these are "
      f"{config.head_width} wide; use more model.heads, or model.attention_kernel='xla'"
    )


def check_device(config: ModelConfig, device: jax.Device | None = None) -> None:
  """Raises ValueError, naming the field and the fix, where `device` cannot run the kernel.

  Args:
    config: as of `check`.
    device: None = the first one of this process.
  """
  kernel = config.attention_kernel
  if kernel == 'xla' or config.dropout:
    return
  device = jax.devices()[0] if device is None else device
  wanted = dict(cudnn='an NVIDIA GPU', splash='a TPU')[kernel]
  is_there = dict(cudnn=is_nvidia, splash=lambda device: device.platform == 'tpu')[kernel]
  if not is_there(device):
    raise ValueError(
      f'model.attention_kernel={kernel!r} needs {wanted}, and JAX found {device.platform} '
      f"({device.device_kind}); use model.attention_kernel='xla', or see BUILD.md"
    )
  if kernel == 'splash':
    return
  capability = float(getattr(device, 'compute_capability', '0'))
  if capability < AMPERE:
    raise ValueError(
      f"model.attention_kernel='cudnn' needs compute capability {AMPERE}, and a "
      f"{device.device_kind} has {capability}; use model.attention_kernel='xla'"
    )
  if config.head_width > CUDNN_WIDTH and capability < HOPPER:
    raise ValueError(
      f"model.attention_kernel='cudnn' takes heads of up to {CUDNN_WIDTH} on a "
      f'{device.device_kind} (compute capability {capability}), and these are '
      f"{config.head_width} wide; use more model.heads, or model.attention_kernel='xla'"
    )


def check_decoding(config: ModelConfig, rows: int, params: Params) -> None:
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


def _undecoded(config: ModelConfig) -> str:
  """Why the kernels for decoding know nothing of a configuration; '' where they do."""
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
  """The configuration with the `decode_kernel` that these parameters can be read by: 'xla' unless
  their layers are separate (decoding/prepare.py). So nothing that is trained meets another."""
  if config.decode_kernel == 'xla' or isinstance(params.get('layers'), tuple):
    return config
  return dataclasses.replace(config, decode_kernel='xla')


def is_single_row(kernel: str, x: Array) -> bool:
  """Whether a `decode_kernel` computes with x [..., C] in place of XLA: one position of one row."""
  return kernel != 'xla' and x.size == x.shape[-1] and x.dtype == jnp.float32


def fits(config: ModelConfig, kernel: str, device: jax.Device | None = None) -> bool:
  """Whether a device (None = the first one of this process) could run a kernel but for dropout."""
  config = dataclasses.replace(config, attention_kernel=kernel, dropout=0.0)
  try:
    check(config)
    check_device(config, device)
  except ValueError:
    return False
  return True


def running(config: ModelConfig) -> tuple[str, str]:
  """The kernel that training really runs, and why it is not the configured one ('' where it is)."""
  kernel = config.attention_kernel
  if kernel == 'xla':
    return kernel, ''
  if config.dropout:
    return 'xla', f'model.dropout={config.dropout} drops attention weights'
  if not config.trains_in_parallel:
    # pyrefly: ignore [missing-attribute]: only a CRT, which has this field, trains otherwise
    return 'xla', f'model.driver={config.driver!r} attends to caches'
  return kernel, ''


def describe(config: ModelConfig) -> str:
  """One line for a log: what runs, and what becomes of the head width."""
  kernel, reason = running(config)
  width = config.head_width
  if reason:
    return f'xla, scores materialised, not {config.attention_kernel}: {reason}'
  if kernel == 'xla':
    return 'xla, scores materialised'
  padded = width + -width % attention_kernels.WIDTH_MULTIPLE
  return f'{kernel}, heads of {width}' + (f' padded to {padded}' if padded > width else '')


def is_nvidia(device: jax.Device) -> bool:
  """Whether it is a GPU of NVIDIA's, also one that is only described."""
  is_gpu = device.platform in ('gpu', 'cuda')
  return is_gpu and any(name in device.device_kind.lower() for name in NVIDIA)
