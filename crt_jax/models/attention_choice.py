"""Which attention kernel (`model.attention_kernel`) runs, what it needs, what runs in its place."""

import dataclasses

import jax

from crt_jax.layers import attention_kernels
from crt_jax.schema import ModelConfig

AMPERE, HOPPER = 8.0, 9.0  # compute capabilities
# cuDNN's widest head: on every GPU that it serves, and from Hopper on.
CUDNN_WIDTH, CUDNN_WIDTH_HOPPER = 128, 256
TRITON_BYTES = 256  # of a head, whose tiles the memory of a multiprocessor still holds
DTYPES = dict(
  cudnn=('bfloat16', 'float16'),
  splash=('bfloat16', 'float32'),
  triton=('bfloat16', 'float16', 'float32'),
)
NVIDIA = ('nvidia', 'tesla', 'geforce', 'quadro', 'titan')  # how its drivers name what it makes


def check(config: ModelConfig) -> None:
  """Raises ValueError where no device could run the attention kernel of a configuration."""
  kernel = config.attention_kernel
  if kernel in ('xla', 'auto') or _drops_too_much(config):
    return
  if config.dtype not in DTYPES[kernel]:
    raise ValueError(
      f"model.attention_kernel={kernel!r} needs model.dtype='bfloat16' (is {config.dtype!r}); "
      "set it, or model.attention_kernel='xla'"
    )
  triton_width = TRITON_BYTES // jax.numpy.dtype(config.dtype).itemsize
  widest = dict(cudnn=CUDNN_WIDTH_HOPPER, triton=triton_width).get(kernel)
  if widest and config.head_width > widest:
    raise ValueError(
      f'model.attention_kernel={kernel!r} takes heads of up to {widest}, and these are '
      f"{config.head_width} wide; use more model.heads, or model.attention_kernel='xla'"
    )


def check_device(config: ModelConfig, device: jax.Device | None = None) -> None:
  """Raises ValueError where `device` (None = the first of this process) cannot run the kernel."""
  kernel = config.attention_kernel
  if kernel == 'xla' or _drops_too_much(config):
    return
  device = jax.devices()[0] if device is None else device
  wanted, is_there = ('a TPU', is_tpu) if kernel == 'splash' else ('an NVIDIA GPU', is_nvidia)
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
      f'model.attention_kernel={kernel!r} needs compute capability {AMPERE}, and a '
      f"{device.device_kind} has {capability}; use model.attention_kernel='xla'"
    )
  if kernel == 'cudnn' and config.head_width > CUDNN_WIDTH and capability < HOPPER:
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
  if _drops_too_much(config):
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
  if kernel == 'triton':
    return f'triton, heads of {width}'
  padded = width + -width % attention_kernels.WIDTH_MULTIPLE
  return f'{kernel}, heads of {width}' + (f' padded to {padded}' if padded > width else '')


def _drops_too_much(config: ModelConfig) -> bool:
  """Returns whether weights are dropped, which of all kernels 'triton' alone does."""
  return bool(config.dropout) and config.attention_kernel != 'triton'


def is_tpu(device: jax.Device) -> bool:
  return device.platform == 'tpu'


def is_nvidia(device: jax.Device) -> bool:
  """Returns whether it is a GPU of NVIDIA's, also one that is only described."""
  is_gpu = device.platform in ('gpu', 'cuda')
  return is_gpu and any(name in device.device_kind.lower() for name in NVIDIA)
