"""Fields of a CART (docs/cart.md)."""

import dataclasses

from crt_jax.schema.depth_schedule import DepthSchedule
from crt_jax.schema.fields import field, require
from crt_jax.schema.model import DEEPEST, WIDEST, ModelConfig

CART_HEAD_WIDTH = 64  # as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class CARTFields(ModelConfig):
  """Fields of what lies between the ends of a CART: of it, and of a CRT with block='cart'."""

  prelude_layers: int = field(
    4, 'layers of the prelude, P; at least 2 unless short_prelude', least=0, most=DEEPEST
  )
  loops: int = field(6, 'loops of the core, R', least=1, most=DEEPEST)
  latent_ratio: int = field(
    4, 'width of the key/value latent is C / latent_ratio', least=0, most=WIDEST, zero='full rank'
  )
  history: int = field(3, 'number of last states that the blend mixes', least=1, most=DEEPEST)
  gate_init: float = field(0.9, 'initial sigmoid(a) of every channel', above=0, below=1)
  loop_code_width: int = field(32, 'width of the code of the loop, even', least=2, most=WIDEST)
  norm_eps: float = field(1e-6, 'epsilon of the norms', above=0, most=1)
  rotary_theta: float = field(1e4, "base of the 'standard' rotary angles", above=0, most=1e12)
  anchor: str = field(
    'frozen',
    "source of the core's keys and values",
    choices={'frozen': "the prelude's output", 'per_loop': "each loop's input"},
  )
  anchor_norm: bool = field(False, "RMSNorm before the anchor's projection")
  share_core: bool = field(True, 'one core for all loops')
  core: str = field(
    'cross',
    'what a loop attends to',
    choices={'cross': 'the anchor', 'self': 'its own states, as a layer of the prelude'},
  )
  core_residual: bool = field(True, "add A * u to the core's output; False needs gate=False")
  blend: bool = field(True, 'mix the last states before each loop')
  gate: bool = field(True, 'learn A, the scale of what is added to the core; False means A = 1')
  loop_code: bool = field(True, "add a code of the loop's number to its input")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CARTConfig(CARTFields):
  """Fields of a CART; the booleans and choices are the switches of docs/cart.md."""

  short_prelude: bool = field(False, 'P may be 0 or 1, which was not published')
  loops_min: int = field(
    0, 'training draws R from loops_min .. loops', least=0, most=DEEPEST, zero='always loops'
  )
  backprop_loops: int = field(
    0, 'number of last loops that gradients flow through', least=0, most=DEEPEST, zero='all'
  )

  def check(self) -> None:
    if not self.heads and not self.head_width:
      object.__setattr__(self, 'head_width', CART_HEAD_WIDTH)
    super().check()
    require(
      self.short_prelude or self.prelude_layers >= 2,
      f'model.prelude_layers={self.prelude_layers} must be at least 2 (as published); '
      'set model.short_prelude=True to go below',
    )
    for name in ('loops_min', 'backprop_loops'):
      value = getattr(self, name)
      require(
        value <= self.loops,
        f'model.{name}={value} must lie between 0 and model.loops={self.loops}',
      )
    self.schedule  # noqa: B018 - checks how many are drawn
    require_latent_ratio(self.latent_ratio, self.width)
    code = self.loop_code_width
    require(code % 2 == 0, f'model.loop_code_width={code} must be even')
    require(
      self.core == 'cross' or self.anchor == 'frozen',
      "model.core='self' has no anchor to renew; set model.anchor='frozen'",
    )
    require(
      not self.backprop_loops or (self.core == 'cross' and self.anchor == 'frozen'),
      f'model.backprop_loops={self.backprop_loops} leaves the prelude no gradient but through a '
      "frozen anchor; set model.core='cross' and model.anchor='frozen', or model.backprop_loops=0",
    )
    require(
      self.core_residual or not self.gate,
      'model.core_residual=False leaves the gate nothing to scale; set model.gate=False too',
    )

  @property
  def schedule(self) -> DepthSchedule:
    """The schedule of R in training."""
    return DepthSchedule((0,), ((self.loops_min or self.loops, self.loops),))


def require_latent_ratio(latent_ratio: int, width: int) -> None:
  """Raises ValueError unless latent_ratio is 0 or divides the width."""
  require(
    latent_ratio == 0 or width % latent_ratio == 0,
    f'model.latent_ratio={latent_ratio} must be 0 (full rank) or divide model.width={width}',
  )
