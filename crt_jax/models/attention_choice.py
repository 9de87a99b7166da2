"""Which attention kernel (`model.attention_kernel`) runs, what it needs, what runs in its place."""

import dataclasses

import jax

from crt_jax.layers import attention_kernels
from crt_jax.schema import ModelConfig

AMPERE, HOPPER = 8.0, 9.0  # compute capabilities
# cuDNN's widest head: on every GPU that it serves, and from Hopper on.
CUDNN_WIDTH, CUDNN_WIDTH_HOPPER = 128, 256
NVIDIA = ('nvidia', 'tesla', 'geforce', 'quadro', 'titan')  # how its drivers name what it makes


def check(config: ModelConfig) -> None:
  """Raises ValueError where no device could run the attention kernel of a configuration."""
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
  """Raises ValueError where `device` (None = the first of this process) cannot run the kernel."""
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


def fits(config: ModelConfig, kernel: str, device: jax.Device | None = None) -> bool:
  """Returns whether `device` (None = the first) could run a kernel but for dropout."""
  config = dataclasses.replace(config, attention_kernel=kernel, dropout=0.0)
  try:
    check(config)
    check_device(config, device)
  except ValueError:
    return False
  return True


def running(config: ModelConfig) -> tuple[str, str]:
  """Returns the kernel that training runs, and why it is not the configured one ('' if it is)."""
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
  """Returns a line for a log: what runs, and what becomes of the head width."""
  kernel, reason = running(config)
  width = config.head_width
  if reason:
    return f'xla, scores materialised, not {config.attention_kernel}: {reason}'
  if kernel == 'xla':
    return 'xla, scores materialised'
  padded = width + -width % attention_kernels.WIDTH_MULTIPLE
  return f'{kernel}, heads of {width}' + (f' padded to {padded}' if padded > width else '')


def is_nvidia(device: jax.Device) -> bool:
  """Returns whether it is a GPU of NVIDIA's, also one that is only described."""
  is_gpu = device.platform in ('gpu', 'cuda')
  return is_gpu and any(name in device.device_kind.lower() for name in NVIDIA)
