"""What each model is made of, as closed formulas that accounting.py sums.

The parts of a model, what they store and multiply, and how often a training step runs each.

`fields` are those of the model's configuration, as attributes.
"""

import dataclasses
import functools
from typing import NamedTuple

from crt_jax.models import corrections
from crt_jax.rounding import round_up
from crt_jax.schema import CARTConfig, CRTConfig, ModelConfig, TransformerConfig


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
    one_cache: whether all applications attend to the same keys and values.
  """

  matrices: int = 0
  vectors: int = 0
  attended: int = 0
  copies: int = 1
  applied: int = 1
  borrowed: int = 0
  one_cache: bool = False

  @property
  def multiplies(self) -> int:
    """Multiply-accumulates by weights, per token."""
    return self.applied * (self.matrices + self.borrowed)


class Work(NamedTuple):
  """How often a part runs.

  Attributes:
    forward: forward passes.
    backward: backward passes, each of twice the products of a forward pass.
    pulled: backward passes without the gradient of the weights.
  """

  forward: float = 1
  backward: float = 1
  pulled: float = 0


def of_transformer(fields: TransformerConfig) -> dict[str, Part]:
  """The parts of a transformer of any style."""
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


def of_crt(fields: CRTConfig) -> dict[str, Part]:
  """The parts of a CRT; what its correction is made of is told in corrections.py."""
  variant, width = corrections.variant_of(fields.correction), fields.width
  squares, vectors = variant.sizes(variant.parts)
  borrowed, _ = variant.sizes(variant.tied)
  attention = width if 'attention' in variant.parts else 0
  correction = Part(squares * width**2, vectors * width, attention, borrowed=borrowed * width**2)
  return _untied_ends(fields) | _crt_block(fields) | {'correction': correction}


def _crt_block(fields: CRTConfig) -> dict[str, Part]:
  """The parts of the block that `fields` name."""
  if fields.block == 'cart':
    return _cart_block(fields)
  if not fields.layers:
    raise ValueError('model.layers is missing; parameters and FLOPs follow from it')
  return {'layers': _roformer_layers(fields)}


def of_cart(fields: CARTConfig) -> dict[str, Part]:
  """The parts of a CART, loops counted as applications of its core."""
  return _tied_ends(fields) | _cart_block(fields)


def _cart_block(fields: CARTConfig | CRTConfig) -> dict[str, Part]:
  """The same without its ends."""
  width, loops, preludes = fields.width, fields.loops, fields.prelude_layers
  keys_values = _keys_values(fields)
  cross_layer = 2 * width**2 + _gated_feed_forward(width)
  self_layer = cross_layer + keys_values
  # History weights, gate and loop code are stored even where a switch leaves them unused. None of
  # them multiplies per token: the code is projected once per loop, for all positions together.
  recurrence = fields.history + width + fields.loop_code_width * width
  pieces = {
    'prelude': Part(self_layer, 2 * width, width, preludes, preludes),
    'core': Part(
      self_layer if fields.core == 'self' else cross_layer,
      2 * width,
      width,
      copies=1 if fields.share_core else loops,
      applied=loops,
      one_cache=fields.core == 'cross' and fields.anchor == 'frozen',
    ),
    'recurrence': Part(vectors=recurrence),
    'coda': Part(self_layer, 2 * width, width),
  }
  if fields.core != 'self':
    norm = width if fields.anchor_norm else 0
    projections = 1 if fields.anchor == 'frozen' else loops
    pieces['anchor'] = Part(keys_values, norm, applied=projections)
  return pieces


def _untied_ends(fields: ModelConfig) -> dict[str, Part]:
  """Token table, LayerNorm, output matrix and bias of the CRT paper's models."""
  table = fields.vocab_size * fields.width
  head = Part(table, fields.vocab_size + 2 * fields.width)
  return {'embedding': Part(vectors=table), 'head': head}


def _tied_ends(fields: ModelConfig) -> dict[str, Part]:
  """Token table and the gain of the last RMSNorm; the table is the output matrix."""
  return {
    'embedding': Part(vectors=fields.vocab_size * fields.width),
    'head': Part(vectors=fields.width),
  }


def _roformer_layers(fields: CRTConfig | TransformerConfig) -> Part:
  """12 C^2 + 13 C each: attention, feed-forward of width 4C, biases, two LayerNorms."""
  width, layers = fields.width, fields.layers
  return Part(12 * width**2, 13 * width, width, layers, layers)


def _keys_values(fields: CARTConfig | CRTConfig | TransformerConfig) -> int:
  """Through a latent of width C / ratio, or (ratio 0) by two full matrices."""
  if not fields.latent_ratio:
    return 2 * fields.width**2
  return 3 * (fields.width // fields.latent_ratio) * fields.width


def _gated_feed_forward(width: int) -> int:
  return 3 * width * round_up(int(8 / 3 * width), 256)


def work_of_crt(fields: CRTConfig, training: bool, sequential: bool) -> dict[str, Work]:
  """Of K parallel passes over a sequence, or over each chunk of it.

  There are K - 1 corrections between the passes, one before them with start='corrected', and one
  behind them where something reads x^(K+1) or the next chunk the summary. Where the network is in
  the summary, the first input needs none.
  """
  if sequential or fields.driver == 'sequential':
    return {}
  layers = functools.partial(dict.fromkeys, _crt_block(fields))
  variant = corrections.variant_of(fields.correction)
  depth, reach, in_summary = fields.depth, fields.gradient_reach, variant.network == 'summary'
  behind = variant.head_reads_input or (training and fields.convergence_weight > 0)
  behind |= in_summary and training and fields.driver == 'chunked'
  corrected = depth - 1 + behind + (fields.start == 'corrected' and not in_summary)
  if fields.gradient == 'last_passes' and reach < depth:
    # The first of the last passes starts from a correction that has a gradient.
    last = Work(corrected, reach - 1 + behind + (not in_summary))
    return layers(Work(depth, reach)) | {'correction': last}
  if fields.gradient == 'implicit':  # the last pass, the fixed point's, and the reverse passes
    fixed = Work(corrected, 1 + behind, reach - 1)
    return layers(Work(depth, 2, reach - 1)) | {'correction': fixed}
  return layers(Work(depth, depth)) | {'correction': Work(corrected, corrected)}


def work_of_cart(fields: CARTConfig, training: bool, sequential: bool) -> dict[str, Work]:
  """Loops before the last `backprop_loops` have no backward pass."""
  del training, sequential
  if not fields.backprop_loops:
    return {}
  return {'core': Work(1, min(fields.backprop_loops / fields.loops, 1))}
