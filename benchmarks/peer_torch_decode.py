"""The same CRTs and transformers decoding in PyTorch with a KV cache: two peers for speed.

Eager, one token at a time in a Python loop, as the CRT paper measured (crt.md, 10.10): separate
linear layers, caches of fixed size, softmax and multinomial. And the same step compiled by
`torch.compile`, with shapes that never change and, on a GPU, CUDA graphs.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

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
    self,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: tuple[Tensor, Tensor],
    position: int | Tensor,
    mask: Tensor | None,
  ) -> Tensor:
    u = self.norm1(x)
    shape = (x.shape[0], self.heads, 1, x.shape[-1] // self.heads)
    q, k, v = (linear(u).view(shape) for linear in (self.query, self.key, self.value))
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    keys, values = cache
    if isinstance(position, int):
      keys[:, :, position : position + 1], values[:, :, position : position + 1] = k, v
      keys, values = keys[:, :, : position + 1], values[:, :, : position + 1]
    else:
      keys.index_copy_(2, position, k), values.index_copy_(2, position, v)
    mixed = functional.scaled_dot_product_attention(q, keys, values, mask)
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

  def hidden(
    self, token: Tensor, summary: Tensor, position: int | Tensor, mask: Tensor | None = None
  ) -> Tensor:
    """Returns the last layer's output at a position; keys and values go into the caches."""
    x = self.table(token)
    if self.correction is not None:
      x = x + self.correction(summary + x)
    cos, sin = self.cos[position], self.sin[position]
    for layer, cache in zip(self.block, self.caches, strict=True):
      x = layer(x, cos, sin, cache, position, mask)
    return x

  def probabilities(self, x: Tensor) -> Tensor:
    """Returns the probabilities of the next token, [B, V]."""
    return self.head(self.norm(x))[:, -1].float().softmax(-1)

  @torch.inference_mode()
  def step(self) -> None:
    """Consumes the last token and draws the next."""
    self.summary = self.hidden(self.token, self.summary, self.position)
    self.token = torch.multinomial(self.probabilities(self.summary), 1)
    self.position += 1


class Compiled(Decoder):
  """The same decoder as one compiled program a token; it reads all cache slots, behind a mask."""

  def __init__(self, *arguments: Any, compile: Callable = torch.compile):
    super().__init__(*arguments)
    for tensor in (part for cache in self.caches for part in cache):
      torch._dynamo.mark_static_address(tensor)  # a CUDA graph writes into it
    self.slots = torch.arange(self.caches[0][0].shape[2], device=self.token.device)
    self.compiled = compile(self._next, mode='reduce-overhead', fullgraph=True, dynamic=False)

  def _next(self, token: Tensor, summary: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    x = self.hidden(token, summary, position, (self.slots <= position)[None, None, None])
    p = self.probabilities(x)
    # The largest of p over exponential noise is drawn with p, without asking the host anything.
    return (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True), x

  @torch.no_grad()
  def step(self) -> None:
    where = torch.full((1,), self.position, device=self.token.device)
    found = self.compiled(self.token, self.summary, where)
    self.token, self.summary = (tensor.clone() for tensor in found)  # the next run overwrites it
    self.position += 1


class _Counter(TorchDispatchMode):
  """Counts operations that start a kernel: all but views of existing memory."""

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
  """Returns the number of operations of one token; the decoder advances one position."""
  with _Counter() as counter:
    decoder.step()
  return counter.count


def launch_cost(device: str) -> float:
  """Returns the seconds of one small operation called from Python without waiting for it."""
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
  """Returns a function tokens -> seconds of each, continuing the text; and its description.

  Args:
    fields: of `config.model`; a CRT with correction 'add' or a transformer of style 'roformer'.
    context: positions that count as read before the first token.

  Raises:
    ValueError: another model.
  """
  decoder, device = _decoder(Decoder, fields, batch, dtype, capacity, threads)
  about = dict(launches=launches(decoder), launch=launch_cost(device))
  return _run(decoder, context), dict(what=f'{_name(device)}, eager', **about)


def compiled_timer(
  fields: dict, batch: int, context: int, dtype: str, capacity: int, threads: int
) -> tuple[Callable[[int], list[float]], dict]:
  """Returns what `timer` returns, for one compiled program a token."""
  # Turns share the last one, which takes longer to compile than to run.
  decoder, device = _compiled(tuple(fields.items()), batch, dtype, capacity, threads)
  return _run(decoder, context), dict(what=f'{_name(device)}, torch.compile', launches=0)


@functools.lru_cache(maxsize=1)
def _compiled(fields: tuple, *arguments: Any) -> tuple[Decoder, str]:
  return _decoder(Compiled, dict(fields), *arguments)


def _decoder(
  kind: type[Decoder], fields: dict, batch: int, dtype: str, capacity: int, threads: int
) -> tuple[Decoder, str]:
  """Returns a decoder and its device."""
  kinds = dict(crt=('correction', 'add'), transformer=('style', 'roformer'))
  field, value = kinds.get(fields['name'], ('name', None))
  if fields.get(field, value) != value:
    raise ValueError("only the CRT paper's models have a PyTorch peer")
  torch.set_num_threads(threads)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  return kind(fields, batch, capacity, dtype, device), device


def _name(device: str) -> str:
  return f'PyTorch {torch.__version__} on {device}'


def _run(decoder: Decoder, context: int) -> Callable[[int], list[float]]:
  """Returns a function that times tokens, the first at position `context`."""
  decoder.position = context

  def run(tokens: int) -> list[float]:
    seconds = []
    for _ in range(tokens):
      start = time.perf_counter()
      decoder.step()
      decoder.token.cpu()  # waits for it
      seconds.append(time.perf_counter() - start)
    return seconds

  return run
