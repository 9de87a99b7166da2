"""Fields of a style's layers, and of a transformer."""

import dataclasses
import math

from crt_jax.schema.cart import CART_HEAD_WIDTH, require_latent_ratio
from crt_jax.schema.fields import LARGEST, MISSING, field, require
from crt_jax.schema.model import DEEPEST, WIDEST, ModelConfig, require_default

ROTARY = {
  'integer_reversed': "the CRT paper's language models",
  'integer': 'pointer chasing',
  'standard': 'rotate-half, by rotary_theta',
}
STYLES = {
  'roformer': "the CRT paper's",
  'llama': 'RMSNorm, rotary angles, grouped keys and values, SwiGLU: Llama, Qwen2, Qwen3, SmolLM',
  'gpt2': 'LayerNorm, learned positions, tanh GELU, biases, tied output',
}
IMPLIED_ROTARY = {'cart_dense': 'standard', 'llama': 'standard', 'gpt2': ''}
# Fields that only some styles have.
OF_STYLES = {
  'norm_eps': ('cart_dense', 'llama'),
  **dict.fromkeys(
    (
      'rotary_scaling',
      'rotary_factor',
      'rotary_low',
      'rotary_high',
      'rotary_positions',
      'kv_heads',
      'qkv_bias',
      'qk_norm',
      'tied',
    ),
    ('llama',),
  ),
  'feed_forward_width': ('llama', 'gpt2'),
  'max_positions': ('gpt2',),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFields(ModelConfig):
  """Fields of layers of a style: of a transformer, and of a CRT with block='transformer'."""

  style: str = field('roformer', 'kind of layers', choices=STYLES)
  rotary: str = field(
    '', "kind of rotary angles; implied by style='llama', none for 'gpt2'", choices=('', *ROTARY)
  )
  rotary_theta: float = field(1e4, "base of the angles of rotary='standard'", above=0, most=1e12)
  rotary_scaling: str = field(
    'none',
    "how style='llama' scales its frequencies for longer texts",
    choices={
      'none': 'not at all',
      'linear': 'all frequencies over rotary_factor',
      'llama3': 'low frequencies over rotary_factor, high ones unchanged',
    },
  )
  rotary_factor: float = field(1.0, 'divisor of frequencies, for rotary_scaling', least=1, most=1e6)
  rotary_low: float = field(
    1.0, "turns in rotary_positions up to which 'llama3' divides frequencies", above=0, most=1e6
  )
  rotary_high: float = field(
    4.0, "turns in rotary_positions from which 'llama3' keeps frequencies", above=0, most=1e6
  )
  rotary_positions: int = field(
    8192, "positions of the training before scaling by 'llama3'", least=1, most=LARGEST
  )
  norm_eps: float = field(1e-6, "epsilon of RMSNorm ('cart_dense', 'llama')", above=0, most=1)
  kv_heads: int = field(
    0, "key/value heads of style='llama', G; divide H", least=0, most=WIDEST, zero='heads'
  )
  qkv_bias: bool = field(False, "style='llama' has biases on q, k and v (Qwen2.5)")
  qk_norm: bool = field(False, "style='llama' has an RMSNorm on each head's q and k (Qwen3)")
  feed_forward_width: int = field(
    0,
    "hidden units of style='llama' or 'gpt2', F",
    least=0,
    most=2**20,
    zero="'llama': the multiple of 256 from 8C/3 on; 'gpt2': 4C",
  )
  tied: bool = field(False, "style='llama': the embedding is the output matrix too")
  max_positions: int = field(
    0, "learned positions of style='gpt2', the longest text", least=0, most=LARGEST, zero='none'
  )

  def check_style(self) -> None:
    """Raises ValueError for fields of another style; fills in what the style implies."""
    for name, styles in OF_STYLES.items():
      if self.style not in styles:
        require_default(self, (name,), ' or '.join(f'model.style={style!r}' for style in styles))
    implied = IMPLIED_ROTARY.get(self.style, self.rotary)
    require(
      self.rotary in ('', implied),
      f'model.rotary={self.rotary!r} must be {implied!r} for model.style={self.style!r}',
    )
    object.__setattr__(self, 'rotary', implied)
    require(
      self.rotary_scaling == 'none' or self.rotary_factor > 1,
      f'model.rotary_factor={self.rotary_factor} must be above 1 for model.rotary_scaling='
      f'{self.rotary_scaling!r}',
    )
    require(
      self.rotary_high > self.rotary_low,
      f'model.rotary_high={self.rotary_high} must be above model.rotary_low={self.rotary_low}',
    )
    require(
      self.style != 'gpt2' or self.max_positions,
      "model.max_positions is missing: model.style='gpt2' learns each position; give the longest "
      'text, as data.sequence_length',
    )

  def check(self) -> None:
    super().check()
    if self.style != 'gpt2':
      require_rotary(self.rotary)
    kv_heads = self.kv_heads or self.heads
    require(
      self.heads % kv_heads == 0,
      f'model.heads={self.heads} must be divisible by model.kv_heads={kv_heads}; use '
      f'model.kv_heads={math.gcd(self.heads, kv_heads)}',
    )

  @property
  def frees_head_width(self) -> bool:
    return self.style == 'llama'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(LayerFields):
  """Fields of a transformer."""

  layers: int = field(MISSING, 'layers, N', least=1, most=DEEPEST)
  style: str = field(
    'roformer',
    'kind of layers',
    choices=STYLES
    | {
      'roformer_head_ffn': "'roformer' with a feed-forward before the head",
      'cart_dense': "CART's baseline",
    },
  )
  latent_ratio: int = field(
    0,
    "width of the key/value latent is C / latent_ratio, for style='cart_dense'",
    least=0,
    most=WIDEST,
    zero='full rank',
  )

  def check(self) -> None:
    self.check_style()
    if self.style == 'cart_dense' and not self.heads and not self.head_width:
      object.__setattr__(self, 'head_width', CART_HEAD_WIDTH)
    super().check()
    require(
      self.latent_ratio == 0 or self.style == 'cart_dense',
      f"model.latent_ratio={self.latent_ratio} needs model.style='cart_dense'; use 0",
    )
    require_latent_ratio(self.latent_ratio, self.width)


def require_rotary(rotary: str) -> None:
  """Raises ValueError without `rotary`: weights fit only the angles they were trained with."""
  choices = ', '.join(map(repr, ROTARY))
  require(rotary, f'model.rotary is missing; choose one of {choices} (crt: integer_reversed)')
