"""`config.model`: the fields of all models, and how a partial config becomes a checked one."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from crt_jax.layers.attention_kernels import KERNELS
from crt_jax.models import kernels
from crt_jax.recurrence.scan import scan_of

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
# What the backward pass recomputes: of each recurrent pass, and of each layer inside it.
REMAT = {
  'none': (False, False),
  'pass': (True, False),
  'layer': (True, True),
  'dots': (kernels.keep_products, kernels.keep_products),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Fields of every model.

  Attributes:
    vocab_size: number of token ids, V.
    width: C, the residual stream.
    heads, head_width: give one (the other follows) or both with heads * head_width == width.
    dropout: share in [0, 1); where it acts is the model's recipe.
    dtype: compute dtype; parameters and residual stream are float32, or float64 when that is asked.
      With 'float16' a training step scales its loss (training/step.py); `loss` itself does not.
    remat: 'none', 'pass' (recompute each recurrent pass), 'layer' (and each layer inside it) or
      'dots' (of both, all but the products with weights and a fused kernel's attention).
    unroll_scans: 'yes' writes out the scans over layers, passes and loops: faster steps on a GPU,
      longer compilation; or 'no'.
    window: positions that attention sees, the current one included; 0 = all before it.
    attention_kernel: 'xla' (materialised scores), 'cudnn' (NVIDIA GPUs, 16 bits) or 'splash'
      (TPUs); models/kernels.py says where 'xla' runs nevertheless.
    loss_chunk_mib: MiB of float32 logits that a device holds at a time. Each chunk adds to the
      gradient of the whole output layer, so few large ones suit a GPU with memory to spare.

  Of the last, and of remat, unroll_scans and attention_kernel, 0 and 'auto' leave the choice to
  models/platform.py.
  """

  name: str
  vocab_size: int
  width: int
  heads: int = 0
  head_width: int = 0
  dropout: float = 0.0
  dtype: str = 'float32'
  remat: str = 'auto'
  unroll_scans: str = 'auto'
  window: int = 0
  attention_kernel: str = 'auto'
  loss_chunk_mib: int = 0

  def __post_init__(self):
    for field in ('vocab_size', 'width'):
      require(getattr(self, field) >= 1, f'model.{field}={getattr(self, field)} must be at least 1')
    chunk = self.loss_chunk_mib
    require(chunk >= 0, f'model.loss_chunk_mib={chunk} must be at least 1, or 0 to leave it open')
    self._resolve_heads()
    one_of('model.dtype', self.dtype, DTYPES)
    one_of('model.remat', self.remat, (*REMAT, 'auto'))
    one_of('model.unroll_scans', self.unroll_scans, ('yes', 'no', 'auto'))
    one_of('model.attention_kernel', self.attention_kernel, (*KERNELS, 'auto'))
    require(
      self.dtype != 'float64' or jax.config.jax_enable_x64,
      "model.dtype='float64' needs 64-bit types; set jax_enable_x64 (JAX_ENABLE_X64=1)",
    )
    require(0 <= self.dropout < 1, f'model.dropout={self.dropout} must lie in [0, 1)')
    for field in ('rotary_theta', 'norm_eps'):
      value = getattr(self, field, 1.0)
      require(value > 0, f'model.{field}={value} must be above 0')
    require(self.window >= 0, f'model.window={self.window} must be 0 (full attention) or more')
    kernels.check(self)

  def _resolve_heads(self):
    heads, head_width, width = self.heads, self.head_width, self.width
    require(heads >= 0, f'model.heads={heads} must be at least 1')
    require(head_width >= 0, f'model.head_width={head_width} must be at least 2')
    require(heads or head_width, 'model.heads is missing; give model.heads or model.head_width')
    name, parts = ('heads', heads) if heads else ('head_width', head_width)
    if width % parts or width < parts:
      below, above = width // parts * parts, (width // parts + 1) * parts
      fits = f'{below} or {above}' if below else f'{above}'
      raise ValueError(f'model.width={width} must be divisible by model.{name}={parts}; use {fits}')
    require(
      not (heads and head_width) or heads * head_width == width,
      f'model.heads={heads} times model.head_width={head_width} is not model.width={width}; '
      f'leave one of them 0',
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
  def pass_scan(self) -> Callable:
    """What runs recurrent passes and loops."""
    return scan_of(REMAT[self.remat][0], self.unroll_scans == 'yes')

  @property
  def layer_scan(self) -> Callable:
    """What runs layers, inside a pass or without any."""
    return scan_of(REMAT[self.remat][1], self.unroll_scans == 'yes')

  @property
  def trains_in_parallel(self) -> bool:
    """Whether training runs parallel passes over whole sequences; else it attends to caches."""
    return True

  @property
  def param_dtype(self) -> str:
    """The dtype of parameters and residual stream."""
    return 'float64' if self.dtype == 'float64' else 'float32'


Config = TypeVar('Config', bound=ModelConfig)


def resolve(cls: type[Config], fields: Mapping) -> Config:
  """The checked configuration; ValueError names an unknown, missing or mistyped field."""
  known = {field.name: field for field in dataclasses.fields(cls)}
  for name in fields:
    if name not in known:
      raise ValueError(f'model.{name} is no field of {cls.__name__}{near(name, known)}')
  for name, field in known.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise ValueError(f'model.{name} is missing; {fields.get("name", "the model")!r} requires it')
  return cls(**{name: _typed(name, value, known[name].type) for name, value in fields.items()})


def _typed(name: str, value, kind: type):
  if isinstance(value, np.generic):
    value = value.item()
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if name == 'unroll_scans' and isinstance(value, bool):  # as older runs have it
    return 'yes' if value else 'no'
  is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
  require(is_right, f'model.{name}={value!r} must be of type {kind.__name__}')
  is_finite = not isinstance(value, float) or math.isfinite(value)
  require(is_finite, f'model.{name}={value} must be a finite number')
  return value


def require(condition, message: str):
  """Raises ValueError(message) unless `condition` holds."""
  if not condition:
    raise ValueError(message)


def one_of(field: str, value: str, choices):
  """Raises ValueError, naming the nearest, unless `value` is one of `choices`."""
  require(
    value in choices,
    f'{field}={value!r} must be one of {", ".join(map(repr, choices))}{near(value, choices)}',
  )


def near(name: str, choices) -> str:
  """'; did you mean ...?' with the closest of `choices`, or ''."""
  match = difflib.get_close_matches(str(name), list(choices), 1)
  return f'; did you mean {match[0]!r}?' if match else ''


class RecurrentPasses(NamedTuple):
  """What the recurrent passes of a model are called.

  Attributes:
    field: of the configuration, that says how many.
    letter: of that number.
    name: of the passes, in the plural.
  """

  field: str
  letter: str
  name: str

  @property
  def label(self) -> str:
    """Of an axis that counts them."""
    return f'{self.name} {self.letter}'
