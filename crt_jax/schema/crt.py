"""Fields of a CRT (docs/crt.md)."""

import dataclasses

from crt_jax.schema.cart import CARTConfig, CARTFields
from crt_jax.schema.depth_schedule import DepthSchedule
from crt_jax.schema.fields import LARGEST, field, require
from crt_jax.schema.layers import LayerFields
from crt_jax.schema.model import DEEPEST, names_of, require_default

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
  'sa': "'add' after self-attention",
}
# What `gradient_reach` counts for each gradient estimator.
GRADIENTS = {
  'full': '',
  'truncated': 'positions',
  'last_passes': 'passes',
  'implicit': 'reverse passes',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CRTConfig(LayerFields, CARTFields):
  """Fields of a CRT; models/crt.py says which drivers and gradients are compatible."""

  block: str = field(
    'transformer',
    'the block that the recurrence repeats',
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
    '', "'step:K' or 'step:low-high', comma-separated: replaces both from each step on"
  )
  correction: str = field(
    'add', 'how an output corrects the next input (models/corrections.py)', choices=CORRECTIONS
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
    0.0, 'weight of mean((x^(K+1) - x^(K))^2); not for driver=sequential', least=0, most=1e6
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
  chunk: int = field(0, 'positions of a chunk, for driver=chunked', least=0, most=LARGEST)
  backward: str = field(
    'replay',
    'what the backward pass stores, for driver=chunked and sequential',
    choices={'replay': 'the caches', 'segments': 'every sqrt(T)-th state', 'scan': 'everything'},
  )
  gradient: str = field(
    'full', 'gradient estimator (recurrence/estimators.py)', choices=tuple(GRADIENTS)
  )
  gradient_reach: int = field(
    0,
    'positions for truncated, passes for last_passes, reverse passes for implicit',
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
    """The CART whose body is the block if block='cart'."""
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
    """The schedule of K in training."""
    return DepthSchedule.parse(self.depth, self.depth_min, self.depth_schedule)

  def require_sequential_form(self, what: str) -> None:
    """Raises ValueError if this CRT has no sequential form, which `what` needs."""
    for name in ('cumulative', 'self_inclusive'):
      require(
        not getattr(self, name),
        f'{what} needs the sequential form, which model.{name}=True does not have; '
        f'set model.{name}=False or use parallel passes (apply)',
      )
