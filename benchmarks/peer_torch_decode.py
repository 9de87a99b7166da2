"""The same CRTs and transformers decoding in plain PyTorch eager with a KV cache: a peer for speed.

One token at a time in a Python loop, as the CRT paper measured (crt.md, 10.10): separate linear
layers, caches of fixed size, softmax and multinomial.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peer_torch_crt import _rotate


class Layer(nn.Module):
  """Pre-norm layer that reads and extends its own cache."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
    self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
    self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(
    self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor], position: int
  ) -> Tensor:
    u = self.norm1(x)
    shape = (x.shape[0], self.heads, 1, x.shape[-1] // self.heads)
    q, k, v = (linear(u).view(shape) for linear in (self.query, self.key, self.value))
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    keys, values = cache
    keys[:, :, position : position + 1], values[:, :, position : position + 1] = k, v
    mixed = functional.scaled_dot_product_attention(
      q, keys[:, :, : position + 1], values[:, :, : position + 1]
    )
    x = x + self.out(mixed.reshape(x.shape))
    return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
  """A CRT (with `correction`) or a transformer, and its caches."""

  def __init__(self, fields: dict, batch: int, capacity: int, dtype: str, device: str):
    super().__init__()
    width, heads = fields['width'], fields['heads']
    self.table = nn.Embedding(fields['vocab_size'], width)
    self.block = nn.ModuleList(Layer(width, heads) for _ in range(fields['layers']))
    self.norm = nn.LayerNorm(width)
    self.head = nn.Linear(width, fields['vocab_size'])
    self.correction = None
    if fields['name'] == 'crt':
      self.correction = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
      )
    self.to(device=device, dtype=getattr(torch, dtype))
    head_width = width // heads
    angle = -torch.arange(capacity)[:, None] * torch.arange(head_width // 2)[None].float()
    options = dict(device=device, dtype=getattr(torch, dtype))
    self.cos, self.sin = angle.cos().to(**options), angle.sin().to(**options)
    shape = (batch, heads, capacity, head_width)
    self.caches = [
      (torch.zeros(shape, **options), torch.zeros(shape, **options)) for _ in self.block
    ]
    self.summary = torch.zeros((batch, 1, width), **options)
    self.token = torch.zeros((batch, 1), dtype=torch.long, device=device)
    self.position = 0

  @torch.inference_mode()
  def step(self) -> None:
    """Consumes the last token and draws the next."""
    x = self.table(self.token)
    if self.correction is not None:
      x = x + self.correction(self.summary + x)
    cos, sin = self.cos[self.position], self.sin[self.position]
    for layer, cache in zip(self.block, self.caches, strict=True):
      x = layer(x, cos, sin, cache, self.position)
    self.summary = x
    logits = self.head(self.norm(x))[:, -1]
    self.token = torch.multinomial(logits.float().softmax(-1), 1)
    self.position += 1


class _Counter(TorchDispatchMode):
  """Counts operations that start a kernel: all but views of memory that is there already."""

  def __init__(self):
    super().__init__()
    self.count = 0

  def __torch_dispatch__(
    self,
    function: torch._ops.OpOverload,
    types: tuple,
    args: tuple = (),
    kwargs: dict | None = None,
  ):
    self.count += not function.is_view
    return function(*args, **(kwargs or {}))


def launches(decoder: Decoder) -> int:
  """Operations of one token; the decoder goes one position further."""
  with _Counter() as counter:
    decoder.step()
  return counter.count


def launch_cost(device: str) -> float:
  """Seconds of one operation on few numbers, called from Python without waiting for it."""
  x, count, best = torch.ones(8, device=device), 1000, float('inf')
  for _ in range(12):
    x.cpu()
    start = time.perf_counter()
    with torch.inference_mode():
      for _ in range(count):
        x = x * 1.0
    x.cpu()  # waits for all of them
    best = min(best, (time.perf_counter() - start) / count)
  return best


def timer(
  fields: dict, batch: int, context: int, dtype: str, capacity: int, threads: int
) -> tuple[Callable[[int], list[float]], dict]:
  """A function tokens -> seconds of each, which goes on where it stopped; and what it is.

  Args:
    fields: of `config.model`; a CRT with correction 'add' or a transformer of style 'roformer'.
    context: positions that count as read before the first token.

  Raises:
    ValueError: another model.
  """
  kinds = dict(crt=('correction', 'add'), transformer=('style', 'roformer'))
  field, value = kinds.get(fields['name'], ('name', None))
  if fields.get(field, value) != value:
    raise ValueError("only the CRT paper's models have a PyTorch peer")
  torch.set_num_threads(threads)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  decoder = Decoder(fields, batch, capacity, dtype, device)
  what = f'PyTorch {torch.__version__} eager on {device}'
  about = dict(what=what, launches=launches(decoder), launch=launch_cost(device))
  decoder.position = context

  def run(tokens: int) -> list[float]:
    seconds = []
    for _ in range(tokens):
      start = time.perf_counter()
      decoder.step()
      decoder.token.cpu()  # waits for it
      seconds.append(time.perf_counter() - start)
    return seconds

  return run, about
