"""The same CART in plain PyTorch eager, as a peer for speed: float32, no dropout."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peer_torch_crt import clipped_step
from crt_jax.rounding import ceil_div

HEAD_WIDTH = 64


class KeysValues(nn.Module):
  """Keys and values of all heads through a latent of a quarter of the width (cart.md 2.3)."""

  def __init__(self, width: int):
    super().__init__()
    self.down = nn.Linear(width, width // 4, bias=False)
    self.key_up = nn.Linear(width // 4, width, bias=False)
    self.value_up = nn.Linear(width // 4, width, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    latent = self.down(x)
    return split_heads(self.key_up(latent)), split_heads(self.value_up(latent))


class Layer(nn.Module):
  """Pre-norm layer with rotary self-attention or, the core, attention to keys that are given.

  Attention is either materialised or PyTorch's fused kernel.
  """

  def __init__(self, width: int, is_core: bool, fused: bool):
    super().__init__()
    hidden = 256 * ceil_div(int(8 / 3 * width), 256)
    self.fused = fused
    self.norm1, self.norm2 = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
    self.query = nn.Linear(width, width, bias=False)
    self.out = nn.Linear(width, width, bias=False)
    self.keys_values = None if is_core else KeysValues(width)
    self.gate = nn.Linear(width, hidden, bias=False)
    self.up = nn.Linear(width, hidden, bias=False)
    self.down = nn.Linear(hidden, width, bias=False)

  def forward(
    self,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    given: tuple[Tensor, Tensor] | None = None,
  ) -> Tensor:
    u = self.norm1(x)
    q = split_heads(self.query(u))
    if self.keys_values is None:
      assert given is not None
      k, v = given
    else:
      k, v = self.keys_values(u)
      q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if self.fused:
      mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
      scores = q @ k.transpose(-2, -1) / math.sqrt(HEAD_WIDTH)
      mixed = scores.masked_fill(mask, float('-inf')).softmax(-1) @ v
    x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
    u = self.norm2(x)
    return x + self.down(functional.silu(self.gate(u)) * self.up(u))


def split_heads(y: Tensor) -> Tensor:
  batch, length, width = y.shape
  return y.view(batch, length, width // HEAD_WIDTH, HEAD_WIDTH).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  first, second = x.chunk(2, dim=-1)
  return x * cos + torch.cat((-second, first), dim=-1) * sin


class CART(nn.Module):
  """A prelude, R loops of one core over the keys and values of its output, a coda (cart.md 2.7)."""

  def __init__(
    self, vocab_size: int, width: int, prelude_layers: int, loops: int, length: int, fused: bool
  ):
    super().__init__()
    self.loops = loops
    self.table = nn.Embedding(vocab_size, width)
    self.prelude = nn.ModuleList(Layer(width, False, fused) for _ in range(prelude_layers))
    self.anchor = KeysValues(width)
    self.core, self.coda = Layer(width, True, fused), Layer(width, False, fused)
    self.blend = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))
    self.gate = nn.Parameter(torch.full((width,), math.log(9.0)))
    self.loop_code = nn.Linear(32, width, bias=False)
    self.final_norm = nn.RMSNorm(width, 1e-6)
    for weight in self.parameters():
      if weight.ndim == 2:
        nn.init.normal_(weight, std=0.02)
    frequency = 1e4 ** (-2 * torch.arange(HEAD_WIDTH // 2) / HEAD_WIDTH)
    angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)
    self.register_buffer('cos', angle.cos())
    self.register_buffer('sin', angle.sin())
    self.register_buffer('mask', torch.ones(length, length).triu(1).bool())
    angle = torch.outer(torch.arange(loops), 1e4 ** (-2 * torch.arange(16) / 32))
    self.register_buffer('codes', torch.stack((angle.sin(), angle.cos()), -1).flatten(1))

  def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
    rotary = self.cos, self.sin, self.mask
    e = self.table(tokens)
    for layer in self.prelude:
      e = layer(e, *rotary)
    given = self.anchor(e)
    ring = [e, e, e]
    for r in range(self.loops):
      weights = self.blend.softmax(0)
      u = weights[0] * ring[0] + weights[1] * ring[1] + weights[2] * ring[2]
      u = u + self.loop_code(self.codes[r])
      h = self.gate.sigmoid() * u + self.core(u, *rotary, given)
      ring = [h, *ring[:-1]]
    hidden = self.final_norm(self.coda(ring[0], *rotary))
    logits = functional.linear(hidden, self.table.weight)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def training_step(
  fields: dict, length: int, tokens: np.ndarray, targets: np.ndarray, fused: bool, threads: int
) -> Callable[[], float]:
  """Returns a function that runs one AdamW step and returns its loss as a float."""
  torch.set_num_threads(threads)
  names = ('vocab_size', 'width', 'prelude_layers', 'loops')
  model = CART(**{name: fields[name] for name in names}, length=length, fused=fused)
  optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.01)
  return clipped_step(model, optimizer, tokens, targets)
