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
import math
import types
from typing import Any

from crt_jax import schema
from crt_jax.models import corrections
from crt_jax.models.counts import Part, Work
from crt_jax.models.registry import model_class


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
  """Returns name -> `Part` of every component that `config.model` builds.

  Raises:
    ValueError: a field is missing, or has a value without a formula.
  """
  fields = resolve(model)
  return model_class(fields.name).counts(fields)


def parameters(model: Any) -> Parameters:
  """Returns stored and effective parameters (crt.md, 2.7; cart.md, 3.1 and 3.2)."""
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
  """Returns multiply-accumulates by weights per token at sequential inference (crt.md, section 7).

  12 C^2 a layer, 8 C^2 for the paper's correction, no attention scores. `output_layer` adds V*C:
  the paper's formula has it, its budget labels (85 M, 341 M) do not.
  """
  body = sum(part.multiplies for name, part in parts(model).items() if name != 'head')
  return body + output_layer * _vocabulary_matrix(model)


def cart_paper(model: Any, sequence_length: int) -> int:
  """Returns the FLOPs of an exact forward pass over T tokens, without output layer (cart.md, 3.4).

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
  """Returns the model FLOPs per token; times tokens/s, over the peak, it is the utilisation.

  2 x multiply-accumulates and 2 T H A an attention layer, the causal half of 4 T H A (a window W
  leaves W - W^2 / 2T positions instead of T/2). What is computed again (by remat, by backward=
  'replay' or 'segments', the one pass that 'implicit' repeats) and the padding of a last chunk do
  not count: they are not the model's. Nor is it subtracted that optimizer.frozen computes less.

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
  cls = model_class(fields.name)
  if depth is not None:
    if cls.passes is None or depth < 1:
      reason = f'a {fields.name} takes only None' if depth >= 1 else 'at least one pass is needed'
      raise ValueError(f'depth={depth} cannot be counted: {reason}')
    fields = resolve(model, **{cls.passes.field: depth})
  times = cls.work(fields, training, sequential)
  attended_positions = _attended_positions(sequence_length, fields.window)
  total = (6.0 if training else 2.0) * _vocabulary_matrix(fields)
  for name, part in cls.counts(fields).items():
    if name != 'head':
      weights = 2.0 * part.multiplies
      scores = 4.0 * attended_positions * part.applied * part.attended
      forward, backward, pulled = times.get(name, Work())
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
  """Returns the width at which `crt_paper` is nearest to a budget, as in the CRT paper.

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
  squares = 12 * layers
  if correction is not None:
    variant = corrections.variant_of(correction)
    squares += variant.sizes(variant.parts + variant.tied)[0]
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
  """Returns the peak dense bfloat16 FLOP/s of a `jax.Device.device_kind`; 0.0 if unknown."""
  kind = device_kind.lower()
  return next((1e12 * teraflops for name, teraflops in _PEAK_TERAFLOPS if name in kind), 0.0)


def _attended_positions(sequence_length: int, window: int) -> float:
  """Returns the mean positions a query attends to, half the diagonal: T/2 without a window."""
  reach = min(window, sequence_length) if window else sequence_length
  return reach - reach**2 / (2 * sequence_length)


def _vocabulary_matrix(model: Any) -> int:
  fields = resolve(model)
  return fields.vocab_size * fields.width


def resolve(model: Any, **changes: Any) -> Any:
  """Returns the unchecked fields of `model` with their defaults, and `changes` on top."""
  given = {name: model[name] for name in model} if hasattr(model, 'keys') else vars(model)
  cls = model_class(given.get('name', '')).Config
  known = [field.name for field in dataclasses.fields(cls)]
  own = {name: value for name, value in given.items() if name in known}
  values = schema.complete(cls, own | changes)
  for name in known:
    if name not in values:
      raise ValueError(f'model.{name} is missing; parameters and FLOPs follow from it')
  return types.SimpleNamespace(**values)
