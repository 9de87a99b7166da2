"""Recurrent transformers CRT and CART in PyTorch, as one file beside their weights.

  model = AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
  model.generate(**tokenizer('Call me', return_tensors='pt'), max_new_tokens=50)

A CRT (context-ready transformer) recurs along the text: what its block makes of a position prepares
the input of the next one. In evaluation and generation that is exact, one position after the other;
training refines all positions in parallel, in K passes. `model(ids, depth=K)` does so anywhere.

A CART (context-anchored recurrent transformer) recurs along depth: one core loops R times over keys
and values that stay what the prelude made them; `model(ids, depth=R)` loops more or less often.

The fields of a model are the object "model" in config.json. Shapes: B batch, T new positions,
S positions that are seen, C width, H heads, G heads of keys and values, A width of a head.
Licence: Apache-2.0.
"""

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# The name of a cache differs between versions of transformers.
KEPT = 'cache' if 'cache' in CausalLMOutputWithPast.__dataclass_fields__ else 'past_key_values'


class CRTJaxConfig(PretrainedConfig):
  """The object `model`, and what transformers wants to know of any model."""

  model_type = 'crt_jax'
  num_hidden_layers = 0  # a cache takes its size from this; ours grows with use

  def __init__(self, model: dict[str, Any] | None = None, **options: Any):
    self.model = model or {}
    super().__init__(**options)


# ---- one layer -----------------------------------------------------------------------------------


class Place(NamedTuple):
  """Where new positions stand.

  Attributes:
    position_BxT: counted from 0 in each row, without padding.
    seen_Bx1xTxS: which positions, earlier and new, each new one attends to.
    cache: what earlier positions left behind; None = there are none, and nothing is kept.
  """

  position_BxT: Tensor
  seen_Bx1xTxS: Tensor
  cache: DynamicCache | None

  def at(self, t: int) -> 'Place':
    """Returns the place of new position t alone."""
    end = self.seen_Bx1xTxS.shape[3] - self.seen_Bx1xTxS.shape[2] + t + 1
    position, seen = self.position_BxT[:, t : t + 1], self.seen_Bx1xTxS[:, :, t : t + 1, :end]
    return Place(position, seen, self.cache)

  def joined(self, k: Tensor, v: Tensor, slot: int) -> tuple[Tensor, Tensor]:
    """New keys and values behind those that the cache has in a slot, which keeps them."""
    return (k, v) if self.cache is None else self.cache.update(k, v, slot)

  def kept(self, slot: int) -> Tensor | None:
    """Returns the keys that the cache has in a slot."""
    layers = [] if self.cache is None else self.cache.layers
    return layers[slot].keys if len(layers) > slot else None


def rotate(x_BxHxTxA: Tensor, position_BxT: Tensor, c: SimpleNamespace) -> Tensor:
  """Turns pairs of each head by angles that grow with the position, of the kind c.rotary."""
  pairs = x_BxHxTxA.shape[-1] // 2
  wide = torch.promote_types(x_BxHxTxA.dtype, torch.float32)
  m = torch.arange(pairs, device=x_BxHxTxA.device)
  if c.rotary == 'standard':
    frequency = c.rotary_theta ** (-m.to(wide) / pairs)
    angle = position_BxT[..., None].to(wide) * scaled(frequency, c)
  else:
    angle = (position_BxT[..., None] * m).to(wide)
    angle = -angle if c.rotary == 'integer_reversed' else angle
  cos, sin = (f(angle)[:, None].to(x_BxHxTxA.dtype) for f in (torch.cos, torch.sin))
  if c.rotary == 'standard':  # the pair (m, m + A/2)
    a, b = x_BxHxTxA.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
  a, b = x_BxHxTxA[..., 0::2], x_BxHxTxA[..., 1::2]
  return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def scaled(frequency: Tensor, c: SimpleNamespace) -> Tensor:
  """Frequencies stretched over longer texts, of layers of style 'llama'."""
  scaling = getattr(c, 'rotary_scaling', 'none')
  if scaling == 'none':
    return frequency
  if scaling == 'linear':
    return frequency / c.rotary_factor
  turns = c.rotary_positions / (2 * math.pi) * frequency
  kept = ((turns - c.rotary_low) / (c.rotary_high - c.rotary_low)).clamp(0, 1)
  return frequency * (kept + (1 - kept) / c.rotary_factor)


def split_heads(x_BxTxHA: Tensor, c: SimpleNamespace) -> Tensor:
  """[B, T, H * A] -> [B, H, T, A]."""
  return x_BxTxHA.unflatten(-1, (-1, c.head_width)).transpose(1, 2)


class Mixing(nn.Module):
  """Softmax attention and its output projection."""

  def __init__(self, c: SimpleNamespace, bias: bool):
    super().__init__()
    self.c = c
    self.out = nn.Linear(c.heads * c.head_width, c.width, bias=bias)

  def mix(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
    shared = q.shape[1] // k.shape[1]
    k, v = (a.repeat_interleave(shared, dim=1) if shared > 1 else a for a in (k, v))
    rate = self.c.dropout if self.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=place.seen_Bx1xTxS, dropout_p=rate)
    return F.dropout(self.out(y.transpose(1, 2).flatten(-2)), self.c.dropout, self.training)


class Attention(Mixing):
  """Attention of the styles 'roformer', 'gpt2' and 'llama'."""

  def __init__(self, c: SimpleNamespace, is_llama: bool):
    super().__init__(c, bias=not is_llama)
    inner, bias = c.heads * c.head_width, c.qkv_bias if is_llama else True
    kv_heads = c.kv_heads or c.heads if is_llama else c.heads
    self.is_fused, self.has_norms = kv_heads == c.heads, is_llama and c.qk_norm
    if self.is_fused:
      self.qkv = nn.Linear(c.width, 3 * inner, bias=bias)
    else:
      self.q = nn.Linear(c.width, inner, bias=bias)
      self.kv = nn.Linear(c.width, 2 * kv_heads * c.head_width, bias=bias)
    if self.has_norms:
      self.q_norm = nn.RMSNorm(c.head_width, eps=c.norm_eps)
      self.k_norm = nn.RMSNorm(c.head_width, eps=c.norm_eps)
    # The attention of a correction does not stretch its angles.
    self.angles = c if is_llama else SimpleNamespace(**{**vars(c), 'rotary_scaling': 'none'})

  def forward(self, x_BxTxC: Tensor, place: Place, slot: int) -> Tensor:
    if self.is_fused:
      parts = self.qkv(x_BxTxC).chunk(3, dim=-1)
    else:
      parts = (self.q(x_BxTxC), *self.kv(x_BxTxC).chunk(2, dim=-1))
    q, k, v = (split_heads(part, self.c) for part in parts)
    if self.has_norms:
      q, k = self.q_norm(q), self.k_norm(k)
    if self.c.rotary:
      q, k = (rotate(a, place.position_BxT, self.angles) for a in (q, k))
    return self.mix(q, *place.joined(k, v, slot), place)


class FeedForward(nn.Module):
  """Two linear maps around an activation: 'gelu', 'gelu_tanh' or 'swiglu'."""

  def __init__(
    self, c: SimpleNamespace, hidden: int, activation: str, inputs: int = 1, inside: bool = False
  ):
    super().__init__()
    self.activation, self.rate, self.inside = activation, c.dropout, inside
    bias = activation != 'swiglu'
    if activation == 'swiglu':
      self.gate_up = nn.Linear(c.width, 2 * hidden, bias=False)
    else:
      self.up = nn.Linear(inputs * c.width, hidden)
    self.down = nn.Linear(hidden, c.width, bias=bias)

  def forward(self, x: Tensor) -> Tensor:
    if self.activation == 'swiglu':
      gate, up = self.gate_up(x).chunk(2, dim=-1)
      y = F.silu(gate) * up
    else:
      y = F.gelu(self.up(x), approximate='tanh' if self.activation == 'gelu_tanh' else 'none')
    if self.inside:
      return self.down(F.dropout(y, self.rate, self.training))
    return F.dropout(self.down(y), self.rate, self.training)


class Layer(nn.Module):
  """x <- x + attention(norm1(x)); x <- x + feed_forward(norm2(x))."""

  def __init__(self, norms: tuple[nn.Module, nn.Module], attention: Mixing, network: FeedForward):
    super().__init__()
    self.norm1, self.norm2 = norms
    self.attention, self.feed_forward = attention, network

  def forward(self, x: Tensor, place: Place, slot: int, *given: tuple[Tensor, Tensor]) -> Tensor:
    x = x + self.attention(self.norm1(x), place, slot, *given)
    return x + self.feed_forward(self.norm2(x))


def swiglu_width(width: int) -> int:
  """Returns the multiple of 256 at or above 8C/3."""
  return -(-int(8 / 3 * width) // 256) * 256


class Stack(nn.ModuleList):
  """D layers of a style."""

  def __init__(self, c: SimpleNamespace):
    super().__init__(self._layer(c) for _ in range(c.layers))
    self.slots = c.layers

  @staticmethod
  def _layer(c: SimpleNamespace) -> Layer:
    if c.style == 'llama':
      norms = nn.RMSNorm(c.width, eps=c.norm_eps), nn.RMSNorm(c.width, eps=c.norm_eps)
      network = FeedForward(c, c.feed_forward_width or swiglu_width(c.width), 'swiglu')
      return Layer(norms, Attention(c, is_llama=True), network)
    norms = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
    is_gpt2 = c.style == 'gpt2'
    hidden = (c.feed_forward_width if is_gpt2 else 0) or 4 * c.width
    network = FeedForward(c, hidden, 'gelu_tanh' if is_gpt2 else 'gelu')
    return Layer(norms, Attention(c, is_llama=False), network)

  def forward(self, x: Tensor, place: Place, depth: int | None = None) -> Tensor:
    for slot, layer in enumerate(self):
      x = layer(x, place, slot)
    return x


# ---- CART ----------------------------------------------------------------------------------------


class KeysValues(nn.Module):
  """Keys and values through a narrow latent, or full-rank."""

  def __init__(self, c: SimpleNamespace):
    super().__init__()
    self.c, inputs = c, c.width // (c.latent_ratio or 1)
    self.down = nn.Linear(c.width, inputs, bias=False) if c.latent_ratio else nn.Identity()
    self.up = nn.Linear(inputs, 2 * c.heads * c.head_width, bias=False)

  def forward(self, x_BxTxC: Tensor) -> tuple[Tensor, Tensor]:
    k, v = self.up(self.down(x_BxTxC)).chunk(2, dim=-1)
    return split_heads(k, self.c), split_heads(v, self.c)


class LatentAttention(Mixing):
  """Attention with keys and values of its own, or over given ones, which know no positions."""

  def __init__(self, c: SimpleNamespace, own_keys: bool):
    super().__init__(c, bias=False)
    self.angles = SimpleNamespace(rotary='standard', rotary_theta=c.rotary_theta)
    self.q = nn.Linear(c.width, c.heads * c.head_width, bias=False)
    if own_keys:
      self.kv = KeysValues(c)

  def forward(
    self, x: Tensor, place: Place, slot: int, given: tuple[Tensor, Tensor] | None = None
  ) -> Tensor:
    q = split_heads(self.q(x), self.c)
    if given is None:
      k, v = self.kv(x)
      q, k = (rotate(a, place.position_BxT, self.angles) for a in (q, k))
      given = place.joined(k, v, slot)
    return self.mix(q, *given, place)


def cart_layer(c: SimpleNamespace, own_keys: bool = True) -> Layer:
  norms = nn.RMSNorm(c.width, eps=c.norm_eps), nn.RMSNorm(c.width, eps=c.norm_eps)
  return Layer(norms, LatentAttention(c, own_keys), FeedForward(c, swiglu_width(c.width), 'swiglu'))


class CARTBlock(nn.Module):
  """Prelude, R loops of the core over the anchor, coda."""

  def __init__(self, c: SimpleNamespace):
    super().__init__()
    self.c, self.is_cross = c, c.core == 'cross'
    self.is_frozen = self.is_cross and c.anchor == 'frozen'
    self.prelude = nn.ModuleList(cart_layer(c) for _ in range(c.prelude_layers))
    cores = [cart_layer(c, not self.is_cross) for _ in range(1 if c.share_core else c.loops)]
    self.core = cores[0] if c.share_core else nn.ModuleList(cores)
    self.coda = cart_layer(c)
    if self.is_cross:
      self.anchor = KeysValues(c)
      self.anchor_norm = nn.RMSNorm(c.width, eps=c.norm_eps) if c.anchor_norm else nn.Identity()
    self.blend = nn.ParameterDict(dict(weight=torch.zeros(c.history)))
    self.gate = nn.ParameterDict(dict(logit=torch.zeros(c.width)))
    self.loop_code = nn.Linear(c.loop_code_width, c.width, bias=False)
    self.slots = c.prelude_layers + 1 + (1 if self.is_frozen else c.loops)

  def forward(self, x: Tensor, place: Place, depth: int | None = None) -> Tensor:
    c = self.c
    for slot, layer in enumerate(self.prelude):
      x = layer(x, place, slot)
    first = c.prelude_layers + 1  # the slot of the anchor, or of the first loop
    anchor = self._anchored(x, place, first) if self.is_frozen else None
    ring = [x] * (c.history if c.blend else 1)  # the latest states, the newest first
    depth = depth or c.loops
    for r in range(depth):
      if self.training and r == depth - getattr(c, 'backprop_loops', 0):
        ring = [h.detach() for h in ring]
      u = ring[0]
      if c.blend:
        u = sum(share * h for share, h in zip(self.blend['weight'].softmax(0), ring, strict=True))
      if c.loop_code:
        u = u + self.loop_code(self._code(r, u))
      given = anchor
      if self.is_cross and not self.is_frozen:
        given = self._anchored(u, place, first + r)
      core = self.core if c.share_core else self.core[r]
      h = core(u, place, first + r, given)
      if c.core_residual:
        h = h + (self.gate['logit'].sigmoid() * u if c.gate else u)
      ring = [h, *ring[:-1]]
    return self.coda(ring[0], place, c.prelude_layers)

  def _anchored(self, x: Tensor, place: Place, slot: int) -> tuple[Tensor, Tensor]:
    k, v = self.anchor(self.anchor_norm(x))
    return place.joined(k, v, slot)

  def _code(self, r: int, like: Tensor) -> Tensor:
    """Returns the sinusoidal code of loop r."""
    width = self.c.loop_code_width
    m = torch.arange(width // 2, dtype=like.dtype, device=like.device)
    angle = r * 1e4 ** (-2 * m / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten()


# ---- CRT -----------------------------------------------------------------------------------------


class Correction(nn.Module):
  """What a position hands to the next one (`summary`), and the input made of it (`inject`).

  `last` is the last layer of the block, whose network the tied kinds use.
  """

  def __init__(self, c: SimpleNamespace, slot: int):
    super().__init__()
    self.kind, self.slot, inputs = c.correction, slot, 2 if c.correction == 'concat' else 1
    self.has_network = self.kind not in ('block_head', 'nosub')
    if self.has_network and self.kind != 'tied_pure':
      self.norm = nn.LayerNorm(inputs * c.width)
    if self.has_network and not self.kind.startswith('tied'):
      self.feed_forward = FeedForward(c, 4 * c.width, 'gelu', inputs, inside=inputs > 1)
    if self.kind == 'sa':
      self.attention_norm, self.attention = nn.LayerNorm(c.width), Attention(c, is_llama=False)

  def network(self, u: Tensor, last: Layer) -> Tensor:
    norm = last.norm2 if self.kind == 'tied_pure' else self.norm
    return (last.feed_forward if self.kind.startswith('tied') else self.feed_forward)(norm(u))

  def summary(self, z: Tensor, x: Tensor, last: Layer) -> Tensor:
    s = z - x if self.kind in ('block_head', 'delta_ffn', 'delta_ffn_add') else z
    return self.network(s, last) if self.kind in ('token_blind', 'delta_ffn') else s

  def inject(self, s: Tensor, e: Tensor, place: Place, last: Layer) -> Tensor:
    if self.kind in ('token_blind', 'block_head', 'nosub', 'delta_ffn'):
      return e + s
    if self.kind == 'stateless':
      return e + self.network(e, last)
    if self.kind == 'concat':
      return e + self.network(torch.cat([s, e], dim=-1), last)
    u = s + e
    if self.kind == 'sa':
      u = u + self.attention(self.attention_norm(u), place, self.slot)
    y = e + self.network(u, last)
    return y + s if self.kind in ('pure', 'tied_pure') else y


# ---- the models ----------------------------------------------------------------------------------


class CRTJaxForCausalLM(PreTrainedModel, GenerationMixin):
  """A CRT or a CART with its ends."""

  config_class = CRTJaxConfig
  base_model_prefix = ''
  _no_split_modules = ['Layer']

  def __init__(self, config: CRTJaxConfig):
    super().__init__(config)
    self.c = c = SimpleNamespace(**config.model)
    self.is_crt = c.name == 'crt'
    over_cart = not self.is_crt or c.block == 'cart'
    style = 'cart' if not self.is_crt else 'roformer' if over_cart else c.style
    self.embedding = nn.Embedding(c.vocab_size, c.width)
    if style == 'gpt2':
      self.positions = nn.Embedding(c.max_positions, c.width)
    self.layers = CARTBlock(c) if over_cart else Stack(c)
    if self.is_crt:
      self.correction = Correction(c, self.layers.slots + 1)
    has_rms = style in ('cart', 'llama')
    self.final_norm = nn.RMSNorm(c.width, eps=c.norm_eps) if has_rms else nn.LayerNorm(c.width)
    if style == 'roformer' or (style == 'llama' and not c.tied):
      self.output = nn.Linear(c.width, c.vocab_size, bias=style == 'roformer')
    self.post_init()

  def get_input_embeddings(self) -> nn.Embedding:
    return self.embedding

  def set_input_embeddings(self, value: nn.Embedding):
    self.embedding = value

  def get_output_embeddings(self) -> nn.Linear | None:
    return getattr(self, 'output', None)

  def set_output_embeddings(self, value: nn.Linear):
    self.output = value

  def forward(
    self,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    cache: DynamicCache | None = None,
    past_key_values: DynamicCache | None = None,
    labels: Tensor | None = None,
    use_cache: bool | None = None,
    logits_to_keep: int | Tensor = 0,
    depth: int | None = None,
    **options: Any,
  ) -> CausalLMOutputWithPast:
    """Returns the logits of what follows each position, and with `labels` the loss.

    Args:
      attention_mask: [B, S], 0 at padding, of earlier positions too.
      cache, past_key_values: what earlier positions left behind, by either name.
      depth: K parallel passes of a CRT, which keep nothing for later ones, or R loops of a CART.
        None: the exact recurrence, and in training the passes or loops that the model was trained
        with, drawn where they were drawn.
    """
    cache = cache if cache is not None else past_key_values
    keeps = cache is not None or (not self.training and use_cache is not False)
    if depth is None and self.training and cache is None:
      depth = self._drawn()
    in_passes = self.is_crt and depth is not None
    if in_passes and cache is not None:
      raise ValueError('parallel passes keep nothing: leave out depth, or set use_cache=False')
    if cache is None and (keeps or self.is_crt) and not in_passes:
      cache = DynamicCache()
    place, real_BxTx1 = self._place(input_ids, attention_mask, cache)
    e_BxTxC = self.embedding(input_ids)
    if hasattr(self, 'positions'):
      e_BxTxC = e_BxTxC + self.positions(place.position_BxT)
    extra = 0.0
    if not self.is_crt:
      hidden = self.layers(e_BxTxC, place, depth)
    elif depth is None:
      hidden = self._recurrence(e_BxTxC, place, real_BxTx1)
    else:
      e_BxTxC = F.dropout(e_BxTxC, self.c.dropout, self.training)
      hidden, extra = self._passes(e_BxTxC, place, real_BxTx1, depth)
    asked = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    normed = self.final_norm(hidden[:, asked])
    output = self.get_output_embeddings()
    logits = output(normed) if output else F.linear(normed, self.embedding.weight)
    loss = None
    if labels is not None:
      loss = self.loss_function(logits, labels, vocab_size=self.c.vocab_size, **options) + extra
    return CausalLMOutputWithPast(loss=loss, logits=logits, **{KEPT: cache if keeps else None})

  def _drawn(self) -> int:
    """Returns how many passes or loops a training step runs."""
    c = self.c
    least, most = (c.depth_min, c.depth) if self.is_crt else (c.loops_min, c.loops)
    return int(torch.randint(least or most, most + 1, ()))

  def _place(
    self, input_ids: Tensor, mask: Tensor | None, cache: DynamicCache | None
  ) -> tuple[Place, Tensor]:
    """Returns where the new positions stand, and which of them are no padding, [B, T, 1]."""
    past, (batch, length) = 0 if cache is None else cache.get_seq_length(), input_ids.shape
    if mask is None:
      mask = torch.ones(batch, past + length, device=input_ids.device)
    key = torch.arange(past + length, device=input_ids.device)
    query = key[past:, None]
    seen = (key <= query) & (mask[:, None, None] > 0)
    if self.c.window:
      seen = seen & (query - key < self.c.window)
    seen = seen | (key == query)  # padding attends to itself, which avoids NaN
    position = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
    return Place(position, seen, cache), (mask[:, past:, None] > 0)

  def _passes(
    self, e: Tensor, place: Place, real: Tensor, depth: int
  ) -> tuple[Tensor, Tensor | float]:
    """Returns what the head reads after K passes over all positions, and the convergence loss."""
    last = self._last()

    def inject(s: Tensor) -> Tensor:
      return self.correction.inject(F.pad(s, (0, 0, 1, -1)), e, place, last)

    x_next = e if self.c.start == 'embedding' else inject(torch.zeros_like(e))
    for _ in range(depth):
      x = x_next
      z = self.layers(x, place)
      x_next = inject(self.correction.summary(z, x, last) * real)
    weight = self.c.convergence_weight
    extra = weight * (x_next - x.detach()).square().mean() if weight else 0.0
    return x_next if self.correction.kind == 'px' else z, extra

  def _recurrence(self, e: Tensor, place: Place, real: Tensor) -> Tensor:
    """Returns what the head reads of the exact recurrence, position by position."""
    last, read, slot = self._last(), [], self.layers.slots
    kept = place.kept(slot)
    s = torch.zeros_like(e[:, :1]) if kept is None else kept[:, 0, -1:]
    for t in range(e.shape[1]):
      here = place.at(t)
      x = self.correction.inject(s, e[:, t : t + 1], here, last)
      z = self.layers(x, here)
      s = self.correction.summary(z, x, last) * real[:, t : t + 1]
      # All summaries are kept, so that a cache can be reordered and cropped like any other.
      here.joined(s[:, None], s[:, None, :, :0], slot)
      read.append(x if self.correction.kind == 'px' else z)
    return torch.cat(read, dim=1)

  def _last(self) -> Layer | None:
    return self.layers[-1] if isinstance(self.layers, Stack) else None
