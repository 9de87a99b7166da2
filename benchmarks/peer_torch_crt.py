"""The same CRT in plain PyTorch eager, as a peer for speed: float32, no dropout."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
  """Pre-norm layer; attention either materialised or PyTorch's fused kernel."""

  def __init__(self, width: int, heads: int, fused: bool):
    super().__init__()
    self.heads, self.fused = heads, fused
    self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
    self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
    self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    u = self.norm1(x)
    q, k, v = (self._split(linear(u)) for linear in (self.query, self.key, self.value))
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if self.fused:
      mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
      scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
      mixed = scores.masked_fill(mask, float('-inf')).softmax(-1) @ v
    x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
    return x + self.down(functional.gelu(self.up(self.norm2(x))))

  def _split(self, y: Tensor):
    batch, length, width = y.shape
    return y.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor):
  even, odd = x[..., 0::2], x[..., 1::2]
  return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class CRT(nn.Module):
  """K parallel passes over a block of `layers` layers (crt.md 3)."""

  def __init__(
    self, vocab_size: int, width: int, heads: int, layers: int, depth: int, length: int, fused: bool
  ):
    super().__init__()
    self.depth = depth
    self.table = nn.Embedding(vocab_size, width)
    self.block = nn.ModuleList(Layer(width, heads, fused) for _ in range(layers))
    self.norm = nn.LayerNorm(width)
    self.correction = nn.Sequential(
      nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )
    self.head = nn.Linear(width, vocab_size)
    angle = -torch.arange(length)[:, None] * torch.arange(width // heads // 2)[None].float()
    self.register_buffer('cos', angle.cos())
    self.register_buffer('sin', angle.sin())
    self.register_buffer('mask', torch.ones(length, length).triu(1).bool())

  def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
    e = self.table(tokens)
    x = e
    for k in range(self.depth):
      z = x
      for layer in self.block:
        z = layer(z, self.cos, self.sin, self.mask)
      if k < self.depth - 1:
        x = e + self.correction(functional.pad(z, (0, 0, 1, -1)) + e)
    return functional.cross_entropy(self.head(self.norm(z)).flatten(0, 1), targets.flatten())


def training_step(
  fields: dict, length: int, tokens: np.ndarray, targets: np.ndarray, fused: bool, threads: int
) -> Callable[[], float]:
  """Returns a function that runs one AdamW step and returns its loss as a float."""
  torch.set_num_threads(threads)
  names = ('vocab_size', 'width', 'heads', 'layers', 'depth')
  model = CRT(**{name: fields[name] for name in names}, length=length, fused=fused)
  optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.01)
  return clipped_step(model, optimizer, tokens, targets)


def clipped_step(
  model: nn.Module, optimizer: torch.optim.Optimizer, tokens: np.ndarray, targets: np.ndarray
) -> Callable[[], float]:
  """Returns a function that takes one step with gradients clipped to norm 1."""
  tokens, targets = torch.tensor(tokens), torch.tensor(targets)

  def step() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = model(tokens, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return step
