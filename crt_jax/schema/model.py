"""Fields of every model, `config.model`."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from crt_jax.schema.fields import LARGEST, MISSING, Section, field, require

WIDEST, DEEPEST = 2**17, 10_000
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
REMAT = {
  'auto': 'the fastest on the device',
  'none': 'nothing',
  'pass': 'every recurrent pass',
  'layer': 'every pass, and every layer in it',
  'dots': "all but products with weights and a fused kernel's attention",
}
KERNELS = {
  'xla': 'scores are materialised',
  'cudnn': 'NVIDIA GPUs, 16 bits',
  'splash': 'TPUs',
  'triton': 'NVIDIA GPUs, with dropout too',
  'auto': 'the fastest on the device',
}
DECODE_KERNELS = {
  'xla': 'what XLA makes of it',
  'pallas': 'few kernels of our own: NVIDIA GPUs, one text at a time',
  'interpreted': "'pallas' on any device, very slowly, for tests",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
  """Fields of every model.

  With dtype='float16' a training step scales its loss (training/step.py); `loss` itself does not.
  What 'auto' and a chunk of 0 stand for on a device: models/device_defaults.py.
  """

  section: ClassVar[str] = 'model'

  name: str = field(MISSING, 'kind of model')
  vocab_size: int = field(MISSING, 'token ids, V', least=1, most=2**24)
  width: int = field(MISSING, 'width of the residual stream, C', least=1, most=WIDEST)
  heads: int = field(0, 'query heads, H; C / heads is even', least=0, most=WIDEST, zero='C / A')
  head_width: int = field(0, 'width of a head, A; even', least=0, most=WIDEST, zero='C / heads')
  dropout: float = field(0.0, 'dropout rate of training', least=0, below=1)
  dtype: str = field(
    'float32', 'of products; parameters and residual stream are float32, or float64', choices=DTYPES
  )
  remat: str = field('auto', 'what the backward pass recomputes', choices=REMAT)
  unroll_scans: str = field(
    'auto',
    'write layers, passes and loops out: faster on a GPU, compiles longer',
    choices=('yes', 'no', 'auto'),
  )
  window: int = field(
    0,
    'positions that a query attends to, itself included',
    least=0,
    most=LARGEST,
    zero='all before',
  )
  attention_kernel: str = field(
    'auto', "what computes attention; with dropout 'xla', or 'triton' if asked for", choices=KERNELS
  )
  decode_kernel: str = field('xla', 'what computes a token of decoding', choices=DECODE_KERNELS)
  loss_chunk_mib: int = field(
    0,
    'MiB of float32 logits that a device holds at a time',
    least=0,
    most=LARGEST,
    zero='the fastest on the device',
  )

  def check(self) -> None:
    heads, head_width, width = self.heads, self.head_width, self.width
    require(heads or head_width, 'model.heads is missing; give model.heads or model.head_width')
    name, parts = ('heads', heads) if heads else ('head_width', head_width)
    is_free = heads and head_width and self.frees_head_width
    if not is_free and (width % parts or width < parts):
      below, above = width // parts * parts, (width // parts + 1) * parts
      fits = f'{below} or {above}' if below else f'{above}'
      raise ValueError(f'model.width={width} must be divisible by model.{name}={parts}; use {fits}')
    require(
      is_free or not (heads and head_width) or heads * head_width == width,
      f'model.heads={heads} times model.head_width={head_width} is not model.width={width}; '
      f'leave one of them 0',
    )
    require(
      not is_free or head_width % 2 == 0,
      f'model.head_width={head_width} must be even for rotary angles; use {head_width + 1}',
    )
    heads, head_width = heads or width // head_width, head_width or width // heads
    require(
      head_width % 2 == 0,
      f'model.width={width} over model.heads={heads} gives head width {head_width}, which rotary '
      f'angles need even; use a width that is a multiple of {2 * heads}',
    )
    object.__setattr__(self, 'heads', heads)
    object.__setattr__(self, 'head_width', head_width)

  @property
  def frees_head_width(self) -> bool:
    """Whether the heads may together be wider or narrower than C."""
    return False

  @property
  def trains_in_parallel(self) -> bool:
    """Whether training runs parallel passes over sequences, not attention over caches."""
    return True

  @property
  def param_dtype(self) -> str:
    """The dtype of parameters and residual stream."""
    return 'float64' if self.dtype == 'float64' else 'float32'


def names_of(cls: type[ModelConfig]) -> set[str]:
  return {one.name for one in dataclasses.fields(cls)}


def require_default(config: ModelConfig, names: Iterable[str], owner: str) -> None:
  """Raises ValueError if a field is given that only `owner` has."""
  for name in sorted(names):
    value = getattr(config, name)
    require(
      value == type(config).__dataclass_fields__[name].default,
      f'model.{name}={value!r} is only for {owner}; set that, or leave it out',
    )
