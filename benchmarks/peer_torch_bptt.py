"""The one-layer CRT by backpropagation through time in plain PyTorch: a loop over positions."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peer_torch_crt import clipped_step


class SequentialCRT(nn.Module):
  """The exact recurrence as its paper trains it (crt.md 5), in PyTorch.

  Keys and values of the last `window` positions are in lists, and at the end one parallel pass over
  the inputs found gives what the head reads. `lean` leaves that pass out, since the loop has the
  same outputs, and projects once for query, key and value instead of three times.
  """

  def __init__(self, vocab_size: int, width: int, heads: int, window: int, length: int, lean: bool):
    super().__init__()
    self.width, self.heads, self.window, self.lean = width, heads, window, lean
    self.table = nn.Embedding(vocab_size, width)
    self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
    sizes = (3 * width,) if lean else (width,) * 3
    self.qkv = nn.ModuleList(nn.Linear(width, size) for size in sizes)
    self.out = nn.Linear(width, width)
    self.feed_forward = _feed_forward(width)
    self.norm = nn.LayerNorm(width)
    self.correction = nn.Sequential(nn.LayerNorm(width), *_feed_forward(width))
    self.head = nn.Linear(width, vocab_size)
    position = torch.arange(length)
    angle = position[:, None] * torch.arange(width // heads // 2)[None].float()
    self.register_buffer('cos', angle.cos())
    self.register_buffer('sin', angle.sin())
    back = position[:, None] - position[None]
    self.register_buffer('mask', (back < 0) | (back >= window))

  def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
    e = self.table(tokens)
    z, keys, values, inputs, outputs = torch.zeros_like(e[:, 0]), [], [], [], []
    for t in range(tokens.shape[1]):
      x = e[:, t] + self.correction(z + e[:, t])
      q, k, v = self._project(x[:, None], slice(t, t + 1))
      keys.append(k)
      values.append(v)
      del keys[: -self.window], values[: -self.window]
      z = self._finish(x[:, None], q, torch.cat(keys, 2), torch.cat(values, 2))[:, 0]
      inputs.append(x)
      outputs.append(z)
    z = torch.stack(outputs, 1) if self.lean else self._parallel(torch.stack(inputs, 1))
    logits = self.head(self.norm(z))
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

  def _parallel(self, x: Tensor):
    return self._finish(x, *self._project(x, slice(0, x.shape[1])), self.mask)

  def _project(self, x: Tensor, positions: slice):
    """Returns rotated queries and keys, and values, [B, H, T, A]."""
    u = self.norm1(x)
    parts = torch.cat([linear(u) for linear in self.qkv], -1).chunk(3, -1)
    shape = (*x.shape[:2], self.heads, self.width // self.heads)
    q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
    cos, sin = self.cos[positions], self.sin[positions]
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v

  def _finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor = None):
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
      scores = scores.masked_fill(mask, float('-inf'))
    mixed = scores.softmax(-1) @ v
    x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
    return x + self.feed_forward(self.norm2(x))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor):
  even, odd = x[..., 0::2], x[..., 1::2]
  return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def _feed_forward(width: int) -> nn.Sequential:
  return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def training_step(
  fields: dict, length: int, tokens: np.ndarray, targets: np.ndarray, lean: bool, threads: int
) -> Callable[[], float]:
  """Returns a function that runs one step of clipped Adam and returns its loss as a float."""
  torch.set_num_threads(threads)
  names = ('vocab_size', 'width', 'heads', 'window')
  model = SequentialCRT(**{name: fields[name] for name in names}, length=length, lean=lean)
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
  return clipped_step(model, optimizer, tokens, targets)
