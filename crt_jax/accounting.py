"""Parameters and FLOPs of every model as closed formulas of `config.model` alone.

Three conventions are in use, and a table that mixes them compares nothing. Each is a function:

  crt_paper    multiply-accumulates of the dense weight matrices per token at sequential inference,
               no attention scores, with or without the output layer V*C (crt.md, section 7).
  cart_paper   2 x multiply-accumulates of a forward pass over a sequence, attention scores as a
               full square, no output layer (cart.md, section 3.4).
  model_flops  for utilisation: 2 x multiply-accumulates, the causal half of attention, every pass K
               and loop R, the output layer once, training = 3 x forward.

Norms, biases, rotary angles, gates and the embedding look-up are free in all three. `model` is any
mapping or object with the fields of `config.model`; where one is missing, its default holds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any

from crt_jax.models import work

# Every field read here with its default; None marks a field that has to be given.
FIELDS = {
  'name': None,
  'vocab_size': None,
  'width': None,
  'layers': None,
  'style': 'roformer',
  'window': 0,
  'depth': 5,
  'correction': 'add',
  'start': 'embedding',
  'convergence_weight': 0.0,
  'driver': 'unroll',
  'gradient': 'full',
  'gradient_reach': 0,
  'prelude_layers': 4,
  'loops': 6,
  'backprop_loops': 0,
  'latent_ratio': 4,
  'history': 3,
  'loop_code_width': 32,
  'anchor': 'frozen',
  'anchor_norm': False,
  'share_core': True,
  'core': 'cross',
}
# Where a transformer's default is another.
TRANSFORMER_FIELDS = {'latent_ratio': 0}


@dataclasses.dataclass(frozen=True)
class Part:
  """One piece of a model: what a copy of it stores and what one application costs per token.

  Attributes:
    matrices: entries of the dense matrices every token is multiplied by.
    vectors: all other parameters of a copy: biases, gains, gates, codes, the token table.
    attended: heads * head width where the piece computes attention scores, else 0.
    copies: how many are stored.
    applied: how often a token passes through one of them: layers, or loops of a core.
    borrowed: entries of matrices it multiplies by but another piece stores (tied corrections).
  """

  matrices: int = 0
  vectors: int = 0
  attended: int = 0
  copies: int = 1
  applied: int = 1
  borrowed: int = 0

  @property
  def multiplies(self) -> int:
    """Multiply-accumulates by weights, per token."""
    return self.applied * (self.matrices + self.borrowed)


@dataclasses.dataclass(frozen=True)
class Parameters:
  """Counts of parameters.

  Attributes:
    stored: all of them, as arrays.
    effective: every application counted, as if each had its own copy (cart.md, 3.1).
    embedding: the token table, V*C.
    matrices: token table and dense matrices only: the approximate column of cart.md, 3.4.
    effective_matrices: the same, loops counted.
  """

  stored: int
  effective: int
  embedding: int
  matrices: int
  effective_matrices: int

  @property
  def leverage(self) -> float:
    return self.effective / self.stored


def parts(model: Any) -> dict[str, Part]:
  """Name -> `Part` of everything `config.model` builds; 'embedding' and 'head' are always there.

  Raises:
    ValueError: a field is missing, or has a value without a formula.
  """
  fields = resolve(model)
  if fields.name not in _BUILDERS:
    raise ValueError(f"model.name='{fields.name}' is unknown; use one of {', '.join(_BUILDERS)}")
  return _BUILDERS[fields.name](fields)


def parameters(model: Any) -> Parameters:
  """Stored and effective parameters (crt.md, 2.7; cart.md, 3.1 and 3.2)."""
  pieces = parts(model)
  embedding = pieces['embedding'].vectors
  stored = effective = 0
  matrices = effective_matrices = embedding
  for part in pieces.values():
    stored += part.copies * (part.matrices + part.vectors)
    effective += part.applied * (part.matrices + part.vectors)
    matrices += part.copies * part.matrices
    effective_matrices += part.applied * part.matrices
  return Parameters(stored, effective, embedding, matrices, effective_matrices)


def crt_paper(model: Any, output_layer: bool = False) -> int:
  """Multiply-accumulates by weight matrices per token at sequential inference (crt.md, section 7).

  12 C^2 a layer, 8 C^2 for the paper's correction, no attention scores. `output_layer` adds V*C:
  the paper's formula has it, its budget labels (85 M, 341 M) do not.
  """
  body = sum(part.multiplies for name, part in parts(model).items() if name != 'head')
  return body + output_layer * _vocabulary_matrix(model)


def cart_paper(model: Any, sequence_length: int) -> int:
  """FLOPs of an exact forward pass over T tokens, without the output layer (cart.md, 3.4).

  2 x multiply-accumulates; attention scores as a full square, 4 T^2 H A a layer. The R loops count;
  a CRT counts as its sequential form, block and correction once. Divide by T for one token.
  """
  body = [part for name, part in parts(model).items() if name != 'head']
  attended = sum(part.applied * part.attended for part in body)
  multiplies = sum(part.multiplies for part in body)
  return 2 * sequence_length * multiplies + 4 * sequence_length**2 * attended


def model_flops(
  model: Any,
  sequence_length: int,
  depth: int | None = None,
  training: bool = True,
  sequential: bool = False,
) -> float:
  """Model FLOPs per token; times tokens per second over the peak is the utilisation.

  2 x multiply-accumulates and 2 T H A an attention layer, the causal half of 4 T H A (a window W
  leaves W - W^2 / 2T positions instead of T/2). What is computed again (by remat, by backward=
  'replay' or 'segments', the one pass that 'implicit' repeats) and the padding of a last chunk do
  not count: they are not the model's.

  Args:
    depth: K or R; None takes the configured one. A run that draws K passes the drawn value.
    training: forward and backward, 3 x forward of what has a gradient: passes before the
      'last_passes' and loops before the last `backprop_loops` have only a forward pass, 'implicit'
      adds its reverse passes. The convergence loss adds the K-th correction.
    sequential: the exact recurrent form of a CRT, block and correction once per token; a configured
      driver='sequential' implies it.

  Raises:
    ValueError: a depth below 1, or any for a transformer.
  """
  fields = resolve(model)
  if depth is not None:
    if fields.name == 'transformer' or depth < 1:
      reason = 'a transformer takes only None' if depth >= 1 else 'at least one pass is needed'
      raise ValueError(f'depth={depth} cannot be counted: {reason}')
    fields = resolve(model, **{'loops' if fields.name == 'cart' else 'depth': depth})
  times = work.of_parts(fields, training, sequential)
  attended_positions = _attended_positions(sequence_length, fields.window)
  total = (6.0 if training else 2.0) * _vocabulary_matrix(fields)
  for name, part in _BUILDERS[fields.name](fields).items():
    if name != 'head':
      weights = 2.0 * part.multiplies
      scores = 4.0 * attended_positions * part.applied * part.attended
      forward, backward, pulled = times.get(name, work.Work())
      total += forward * (weights + scores)
      if training:
        total += 2 * backward * (weights + scores) + pulled * (weights + 2 * scores)
  return total


def match_width(
  budget: float,
  layers: int,
  heads: int = 16,
  correction: str | None = None,
  output_layer: bool = False,
  vocab_size: int = 32_000,
  multiple: int = 32,
) -> int:
  """Width at which `crt_paper` comes nearest to a budget, as the CRT paper chose its widths.

  Its two tables (crt.md, section 7) follow from the body of the 12-layer transformer: 84,934,656
  at C=768 and 339,738,624 at C=1536. Budgets from 84.66 to 85.20 M and from 339.31 to 340.80 M give
  the same widths; the label 341 M does not (it puts D=6 at 2080). One published width is not the
  nearest: D=3 has C=1408 where 1376 is.

  Args:
    budget: multiply-accumulates per token, counting V*C if `output_layer`.
    layers: N of a transformer, D of a CRT.
    heads: each keeps an even width, so the width is a multiple of 2 * heads and of `multiple`.
    correction: None for a transformer, else the CRT's: 'add', 'sa', ...

  Returns:
    The multiple nearest to the width that meets the budget exactly.
  """
  if budget <= 0 or layers < 1:
    raise ValueError(f'budget={budget} and layers={layers} must be positive')
  squares = 12 * layers + (0 if correction is None else _correction_size(correction)[0])
  linear = vocab_size if output_layer else 0
  exact = (math.sqrt(linear**2 + 4 * squares * budget) - linear) / (2 * squares)
  step = math.lcm(multiple, 2 * heads)
  return step * max(1, round(exact / step))


# Peak dense bfloat16 TFLOP/s of one JAX device, from the makers' datasheets; figures given there
# with sparsity are halved. The first name that occurs in the device kind wins: longer ones first.
_PEAK_TERAFLOPS = (
  ('b200', 2250.0),  # NVIDIA Blackwell: 4,500 with sparsity
  ('h200 nvl', 835.5),  # NVIDIA H200 NVL: 1,671 with sparsity
  ('h200', 989.4),  # NVIDIA H200 SXM: 1,979 with sparsity
  ('h100 nvl', 835.5),  # NVIDIA H100 NVL: 1,671 with sparsity
  ('h100 pcie', 756.5),  # NVIDIA H100 PCIe: 1,513 with sparsity
  ('h100', 989.4),  # NVIDIA H100 SXM: 1,979 with sparsity
  ('a100', 312.0),  # NVIDIA A100, 40 and 80 GB
  ('l40s', 362.05),  # NVIDIA L40S: dense and sparse both listed
  ('rtx 4090', 165.2),  # NVIDIA Ada whitepaper, float32 accumulation
  ('rtx 3090', 71.0),  # NVIDIA GA102 whitepaper, float32 accumulation
  ('tpu v6 lite', 918.0),  # Google Cloud TPU v6e
  ('tpu v6e', 918.0),
  ('tpu v5 lite', 197.0),  # Google Cloud TPU v5e
  ('tpu v5e', 197.0),
  ('tpu v5', 459.0),  # Google Cloud TPU v5p, whose kind reads 'TPU v5' or 'TPU v5p'
  ('tpu v4', 275.0),  # Google Cloud TPU v4; a device is a whole chip
  ('tpu v3', 61.5),  # Google Cloud TPU v3: 123 a chip; a device is one of its two cores
)


def peak_flops(device_kind: str) -> float:
  """Peak dense bfloat16 FLOP/s of a `jax.Device.device_kind`; 0.0 where it is not known."""
  kind = device_kind.lower()
  return next((1e12 * teraflops for name, teraflops in _PEAK_TERAFLOPS if name in kind), 0.0)


def _transformer(fields: types.SimpleNamespace) -> dict[str, Part]:
  width, layers = fields.width, fields.layers
  if fields.style == 'cart_dense':
    weights = 2 * width**2 + _keys_values(fields) + _gated_feed_forward(width)
    return _tied_ends(fields) | {'layers': Part(weights, 2 * width, width, layers, layers)}
  if fields.style == 'roformer':
    return _untied_ends(fields) | {'layers': _roformer_layers(fields)}
  if fields.style == 'roformer_head_ffn':
    head_ffn = Part(8 * width**2, (5 + 2) * width)
    return _untied_ends(fields) | {'layers': _roformer_layers(fields), 'head_ffn': head_ffn}
  raise ValueError(
    f"model.style='{fields.style}' has no formula; use roformer, roformer_head_ffn or cart_dense"
  )


def _crt(fields: types.SimpleNamespace) -> dict[str, Part]:
  if fields.style != 'roformer':
    raise ValueError(f"model.style='{fields.style}' has no formula for a CRT; use roformer")
  width = fields.width
  squares, vectors, attention, tied = _correction_size(fields.correction)
  weights = squares * width**2
  correction = Part(
    0 if tied else weights, vectors * width, attention * width, borrowed=weights if tied else 0
  )
  return _untied_ends(fields) | {'layers': _roformer_layers(fields), 'correction': correction}


def _cart(fields: types.SimpleNamespace) -> dict[str, Part]:
  width, loops, preludes = fields.width, fields.loops, fields.prelude_layers
  keys_values = _keys_values(fields)
  cross_layer = 2 * width**2 + _gated_feed_forward(width)
  self_layer = cross_layer + keys_values
  # History weights, gate and loop code are stored even where a switch leaves them unused. None of
  # them multiplies per token: the code is projected once per loop, for all positions together.
  recurrence = fields.history + width + fields.loop_code_width * width
  pieces = _tied_ends(fields) | {
    'prelude': Part(self_layer, 2 * width, width, preludes, preludes),
    'core': Part(
      self_layer if fields.core == 'self' else cross_layer,
      2 * width,
      width,
      copies=1 if fields.share_core else loops,
      applied=loops,
    ),
    'recurrence': Part(vectors=recurrence),
    'coda': Part(self_layer, 2 * width, width),
  }
  if fields.core != 'self':
    norm = width if fields.anchor_norm else 0
    projections = 1 if fields.anchor == 'frozen' else loops
    pieces['anchor'] = Part(keys_values, norm, applied=projections)
  return pieces


_BUILDERS = {'crt': _crt, 'transformer': _transformer, 'cart': _cart}


def _untied_ends(fields: types.SimpleNamespace) -> dict[str, Part]:
  """Token table, LayerNorm, output matrix and bias of the CRT paper's models."""
  table = _vocabulary_matrix(fields)
  head = Part(table, fields.vocab_size + 2 * fields.width)
  return {'embedding': Part(vectors=table), 'head': head}


def _tied_ends(fields: types.SimpleNamespace) -> dict[str, Part]:
  """Token table and the gain of the last RMSNorm; the table is the output matrix."""
  return {
    'embedding': Part(vectors=_vocabulary_matrix(fields)),
    'head': Part(vectors=fields.width),
  }


def _roformer_layers(fields: types.SimpleNamespace) -> Part:
  """12 C^2 + 13 C each: attention, feed-forward of width 4C, biases, two LayerNorms."""
  width, layers = fields.width, fields.layers
  return Part(12 * width**2, 13 * width, width, layers, layers)


def _keys_values(fields: types.SimpleNamespace) -> int:
  """Through a latent of width C / ratio, or (ratio 0) by two full matrices."""
  if not fields.latent_ratio:
    return 2 * fields.width**2
  return 3 * (fields.width // fields.latent_ratio) * fields.width


def _gated_feed_forward(width: int) -> int:
  return 3 * width * 256 * math.ceil(math.floor(8 / 3 * width) / 256)


def _correction_size(correction: str) -> tuple[int, int, int, bool]:
  """Matrices / C^2, other parameters / C, attention layers, and whether the matrices are tied."""
  if correction in ('add', 'stateless', 'token_blind', 'delta_ffn', 'delta_ffn_add', 'pure', 'px'):
    return 8, 5 + 2, 0, False
  if correction == 'concat':  # LayerNorm of 2C, then 2C -> 4C -> C
    return 12, 5 + 4, 0, False
  if correction == 'sa':  # attention and feed-forward, a LayerNorm before each
    return 12, 4 + 2 + 5 + 2, 1, False
  if correction in ('block_head', 'nosub'):
    return 0, 0, 0, False
  if correction == 'tied':  # the last layer's feed-forward, its own LayerNorm
    return 8, 2, 0, True
  if correction == 'tied_pure':  # the last layer's LayerNorm too
    return 8, 0, 0, True
  raise ValueError(f"model.correction='{correction}' has no formula; crt.md, section 9, names them")


def _attended_positions(sequence_length: int, window: int) -> float:
  """Mean number of positions a query attends to, the diagonal halved: T/2 without a window."""
  reach = min(window, sequence_length) if window else sequence_length
  return reach - reach**2 / (2 * sequence_length)


def _vocabulary_matrix(model: Any) -> int:
  fields = resolve(model)
  return fields.vocab_size * fields.width


def resolve(model: Any, **changes: Any) -> types.SimpleNamespace:
  """The fields as attributes: what `model` gives, else the default, with `changes` on top."""
  get = model.get if isinstance(model, Mapping) else functools.partial(getattr, model)
  defaults = FIELDS | (TRANSFORMER_FIELDS if get('name', None) == 'transformer' else {})
  values = {name: get(name, default) for name, default in defaults.items()} | changes
  needed = ('name', 'vocab_size', 'width') + (() if values['name'] == 'cart' else ('layers',))
  for name in needed:
    if values[name] is None:
      raise ValueError(f'model.{name} is missing; parameters and FLOPs follow from it')
  return types.SimpleNamespace(**values)
