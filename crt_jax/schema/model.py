"""`config.model`: the fields of each kind of model (docs/crt.md, docs/cart.md)."""

import dataclasses
import math
from collections.abc import Iterable
from typing import ClassVar

from crt_jax.schema.depth_schedule import DepthSchedule
from crt_jax.schema.fields import LARGEST, MISSING, Section, field, require

WIDEST, DEEPEST = 2**17, 10_000
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
REMAT = {
  'auto': 'as is fastest on the device',
  'none': 'nothing',
  'pass': 'every recurrent pass',
  'layer': 'every pass, and every layer in it',
  'dots': "all but products with weights and a fused kernel's attention",
}
KERNELS = {
  'xla': 'scores are materialised',
  'cudnn': 'NVIDIA GPUs, 16 bits',
  'splash': 'TPUs',
  'auto': 'as is fastest on the device',
}
ROTARY = {
  'integer_reversed': "the CRT paper's language models",
  'integer': 'pointer chasing',
  'standard': 'halves are rotated, by rotary_theta',
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
CORRECTIONS = {
  'add': "the paper's CRT",
  'stateless': 'the same network without recurrence',
  'token_blind': 'the network reads the summary alone',
  'concat': 'the network reads summary and token side by side',
  'block_head': 'no network, the change of the block is added',
  'nosub': 'no network, the output of the block is added',
  'delta_ffn': 'the network reads the change of the block',
  'delta_ffn_add': "'add' of the change of the block",
  'tied': "'add' with the feed-forward of the last layer",
  'pure': "'add' and the summary itself",
  'tied_pure': "'pure' with norm and feed-forward of the last layer",
  'px': "'add', and the head reads the next input",
  'sa': "'add' behind self-attention",
}
# What a gradient's reach counts.
GRADIENTS = {
  'full': '',
  'truncated': 'positions',
  'last_passes': 'passes',
  'implicit': 'reverse passes',
}
CART_HEAD_WIDTH = 64  # as published


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
  heads: int = field(0, 'query heads, H; C / heads is even', least=0, most=WIDEST, zero='derived')
  head_width: int = field(0, 'width of a head, A; even', least=0, most=WIDEST, zero='C / heads')
  dropout: float = field(0.0, 'share of units that training drops', least=0, below=1)
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
    0, 'positions that attention sees, its own included', least=0, most=LARGEST, zero='all before'
  )
  attention_kernel: str = field(
    'auto', "what computes attention; 'xla' runs with dropout too", choices=KERNELS
  )
  loss_chunk_mib: int = field(
    0,
    'MiB of float32 logits that a device holds at a time',
    least=0,
    most=LARGEST,
    zero='as is fastest on the device',
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
    """Whether training runs parallel passes over whole sequences; else it attends to caches."""
    return True

  @property
  def param_dtype(self) -> str:
    """The dtype of parameters and residual stream."""
    return 'float64' if self.dtype == 'float64' else 'float32'


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFields(ModelConfig):
  """Fields of layers of some style: of a transformer, and of a CRT with block='transformer'."""

  style: str = field('roformer', 'kind of layers', choices=STYLES)
  rotary: str = field(
    '', "kind of rotary angles; implied by style='llama', none of 'gpt2'", choices=('', *ROTARY)
  )
  rotary_theta: float = field(1e4, "base of the angles of rotary='standard'", above=0, most=1e12)
  rotary_scaling: str = field(
    'none',
    "how style='llama' stretches its angles over longer texts",
    choices={
      'none': 'not at all',
      'linear': 'all frequencies over rotary_factor',
      'llama3': 'low ones over rotary_factor, high ones as they are',
    },
  )
  rotary_factor: float = field(1.0, 'of rotary_scaling', least=1, most=1e6)
  rotary_low: float = field(
    1.0, "turns in rotary_positions up to which 'llama3' divides all", above=0, most=1e6
  )
  rotary_high: float = field(
    4.0, "turns in rotary_positions from which 'llama3' divides nothing", above=0, most=1e6
  )
  rotary_positions: int = field(
    8192, "positions that were trained before 'llama3' stretched them", least=1, most=LARGEST
  )
  norm_eps: float = field(1e-6, "epsilon of RMSNorm: 'cart_dense', 'llama'", above=0, most=1)
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
    "of style='cart_dense': keys and values through C / latent_ratio",
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
    require_latent_ratio(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CARTFields(ModelConfig):
  """Fields of what lies between the ends of a CART: of it, and of a CRT with block='cart'."""

  prelude_layers: int = field(
    4, 'layers of the prelude, P; at least 2 unless short_prelude', least=0, most=DEEPEST
  )
  loops: int = field(6, 'loops of the core, R', least=1, most=DEEPEST)
  latent_ratio: int = field(
    4, 'keys and values through C / latent_ratio', least=0, most=WIDEST, zero='full rank'
  )
  history: int = field(3, 'states that the blend mixes', least=1, most=DEEPEST)
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
  core_residual: bool = field(True, 'A * u is added around the core; False needs gate=False')
  blend: bool = field(True, 'the last states are mixed')
  gate: bool = field(True, 'A is learned')
  loop_code: bool = field(True, 'a loop knows its number')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CRTConfig(LayerFields, CARTFields):
  """Fields of a CRT; models/crt.py says which drivers and gradients go together."""

  block: str = field(
    'transformer',
    'what the recurrence stands over',
    choices={
      'transformer': 'layers of its own, of some style',
      'cart': 'the body of a CART, with its fields; layers and heads are 0',
    },
  )
  layers: int = field(
    0, "layers of the block, D; at least 1 unless block='cart'", least=0, most=DEEPEST
  )
  depth: int = field(5, 'parallel passes, K', least=1, most=DEEPEST)
  depth_min: int = field(
    0, 'training draws K from depth_min .. depth', least=0, most=DEEPEST, zero='always depth'
  )
  depth_schedule: str = field(
    '', "'step:K' or 'step:low-high', comma-separated: replaces both from those steps on"
  )
  correction: str = field(
    'add', "what a position's successor gets (models/corrections.py)", choices=CORRECTIONS
  )
  cumulative: bool = field(
    False, 'each pass adds to its own input, not to the embedding; no sequential form'
  )
  self_inclusive: bool = field(
    False, "position t reads its own summary, not t-1's; no sequential form"
  )
  start: str = field(
    'embedding',
    'first input of the parallel passes',
    choices={'embedding': 'x = e', 'corrected': 'a zero summary is injected'},
  )
  convergence_weight: float = field(
    0.0, 'in the loss, of mean((x^(K+1) - x^(K))^2); not of driver=sequential', least=0, most=1e6
  )
  driver: str = field(
    'unroll',
    'what the loss differentiates',
    choices={
      'unroll': 'K parallel passes',
      'chunked': 'K passes over each chunk',
      'sequential': 'backpropagation through time',
    },
  )
  chunk: int = field(0, 'positions of a chunk, of driver=chunked', least=0, most=LARGEST)
  backward: str = field(
    'replay',
    'what the backward pass of the other two drivers stores',
    choices={'replay': 'the caches', 'segments': 'every sqrt(T)-th state', 'scan': 'everything'},
  )
  gradient: str = field(
    'full', 'what of it is computed (recurrence/estimators.py)', choices=tuple(GRADIENTS)
  )
  gradient_reach: int = field(
    0,
    'positions of truncated, passes of last_passes, reverse passes of implicit',
    least=0,
    most=LARGEST,
  )

  def check(self) -> None:
    self._check_block()
    super().check()
    require(
      self.depth_min <= self.depth,
      f'model.depth_min={self.depth_min} must lie between 0 (fixed) and model.depth={self.depth}',
    )
    self.schedule  # noqa: B018 - parses, so that a mistake is reported here
    if self.driver == 'chunked':
      require(self.chunk >= 1, f"model.chunk={self.chunk} must be at least 1 for driver='chunked'")
    if self.driver != 'unroll':
      self.require_sequential_form(f'model.driver={self.driver!r}')
    self._check_gradient()

  def _check_block(self) -> None:
    if self.block == 'transformer':
      require(self.layers, 'model.layers is missing: model.layers=0 must be at least 1')
      require_default(self, names_of(CARTFields) - names_of(LayerFields), "model.block='cart'")
      self.check_style()
      return
    own = names_of(LayerFields) - names_of(CARTFields) - {'rotary'}
    require_default(self, own, "model.block='transformer'")
    require(
      not self.layers,
      f"model.layers={self.layers} does not go with model.block='cart'; leave it out (0), and set "
      'model.prelude_layers and model.loops',
    )
    require(
      self.head_width or not self.heads,
      f"model.heads={self.heads} does not go with model.block='cart'; leave it out (0), and set "
      f'model.head_width={self.width // max(self.heads, 1)}',
    )
    if not self.rotary:
      object.__setattr__(self, 'rotary', 'standard')
    require(
      self.rotary == 'standard',
      f"model.rotary={self.rotary!r} must be 'standard' for model.block='cart'",
    )
    object.__setattr__(self, 'head_width', self.cart.head_width)

  @property
  def cart(self) -> 'CARTConfig':
    """The CART whose body block='cart' is."""
    return CARTConfig(**{name: getattr(self, name) for name in names_of(CARTFields)})

  def _check_gradient(self) -> None:
    named, reach = f'model.gradient={self.gradient!r}', self.gradient_reach
    if self.gradient == 'full':
      require(reach == 0, f'model.gradient_reach={reach} must be 0 for {named}')
      return
    unit = GRADIENTS[self.gradient]
    require(reach >= 1, f'model.gradient_reach={reach} must be at least 1 ({unit}) for {named}')
    if self.gradient == 'truncated' and self.driver == 'chunked':
      require(
        reach % self.chunk == 0,
        f'model.gradient_reach={reach} must be a multiple of model.chunk={self.chunk}; '
        f'use {reach // self.chunk * self.chunk or self.chunk}',
      )
    if self.gradient == 'last_passes':
      least = self.schedule.depths()[0]
      require(
        reach <= least, f'model.gradient_reach={reach} exceeds the {least} passes; use {least}'
      )
    if self.gradient == 'implicit':
      self.require_sequential_form(named)
      require(
        self.dropout == 0,
        f'{named} needs model.dropout=0 (is {self.dropout}): a map that differs in every pass has '
        'no fixed point',
      )

  @property
  def trains_in_parallel(self) -> bool:
    return self.driver == 'unroll'

  @property
  def schedule(self) -> DepthSchedule:
    """When training uses which K."""
    return DepthSchedule.parse(self.depth, self.depth_min, self.depth_schedule)

  def require_sequential_form(self, what: str) -> None:
    """Raises ValueError where this CRT has none, which `what` needs."""
    for name in ('cumulative', 'self_inclusive'):
      require(
        not getattr(self, name),
        f'{what} needs the sequential form, which model.{name}=True does not have; '
        f'set model.{name}=False or use parallel passes (apply)',
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CARTConfig(CARTFields):
  """Fields of a CART; the booleans and choices are the switches of docs/cart.md."""

  short_prelude: bool = field(False, 'P may be 0 or 1, which was not published')
  loops_min: int = field(
    0, 'training draws R from loops_min .. loops', least=0, most=DEEPEST, zero='always loops'
  )
  backprop_loops: int = field(
    0, 'gradients flow through the last so many loops', least=0, most=DEEPEST, zero='all'
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
    require_latent_ratio(self)
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
    """Which R training draws."""
    return DepthSchedule((0,), ((self.loops_min or self.loops, self.loops),))


def require_latent_ratio(config: TransformerConfig | CARTConfig) -> None:
  """Raises ValueError unless the width of the latent is whole, or there is none."""
  ratio, width = config.latent_ratio, config.width
  require(
    ratio == 0 or width % ratio == 0,
    f'model.latent_ratio={ratio} must be 0 (full rank) or divide model.width={width}',
  )


def names_of(cls: type[ModelConfig]) -> set[str]:
  return {one.name for one in dataclasses.fields(cls)}


def require_default(config: ModelConfig, names: Iterable[str], owner: str) -> None:
  """Raises ValueError where a field that only `owner` has is given."""
  for name in sorted(names):
    value = getattr(config, name)
    require(
      value == type(config).__dataclass_fields__[name].default,
      f'model.{name}={value!r} is of {owner}; set that, or leave it out',
    )


def require_rotary(rotary: str) -> None:
  """Weights mean nothing without the angles they were trained with, so there is no default."""
  choices = ', '.join(map(repr, ROTARY))
  require(rotary, f'model.rotary is missing; choose one of {choices} (crt: integer_reversed)')


MODELS: dict[str, type[ModelConfig]] = {
  'transformer': TransformerConfig,
  'crt': CRTConfig,
  'cart': CARTConfig,
}
