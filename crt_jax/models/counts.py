"""The components of each model as closed formulas, which accounting.py sums.

A formula says what a component stores, what it multiplies, and how often a training step runs it.
`fields` is a model configuration.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from crt_jax.models import corrections
from crt_jax.models.layer_stacks import swiglu_width
from crt_jax.schema import CARTConfig, CRTConfig, LayerFields, ModelConfig, TransformerConfig
from crt_jax.schema.fields import one_of, require


@dataclasses.dataclass(frozen=True)
class Part:
  """One component of a model: what a copy stores, and what one application costs per token.

  Attributes:
    matrices: entries of the dense matrices every token is multiplied by.
    vectors: all other parameters of a copy: biases, gains, gates, codes, the token table.
    attended: heads * head width where the piece computes attention scores, else 0.
    copies: how many are stored.
    applied: how often a token passes through one of them: layers, or loops of a core.
    borrowed: entries of matrices it multiplies by but another piece stores (tied corrections).
    one_cache: whether all applications attend to the same keys and values.
    shared: query heads to a head of the cache.
  """

  matrices: int = 0
  vectors: int = 0
  attended: int = 0
  copies: int = 1
  applied: int = 1
  borrowed: int = 0
  one_cache: bool = False
  shared: int = 1

  @property
  def multiplies(self) -> int:
    """Multiply-accumulates by weights, per token."""
    return self.applied * (self.matrices + self.borrowed)


class Work(NamedTuple):
  """How often a component runs in one step.

  Attributes:
    forward: forward passes.
    backward: backward passes, each of twice the products of a forward pass.
    pulled: backward passes without the gradient of the weights.
  """

  forward: float = 1
  backward: float = 1
  pulled: float = 0


def of_transformer(fields: TransformerConfig) -> dict[str, Part]:
  """Returns the components of a transformer of any style."""
  style, width = style_of(fields), fields.width
  parts = style.ends(fields) | {'layers': style.layers(fields)}
  if fields.style == 'roformer_head_ffn':
    parts['head_ffn'] = Part(8 * width**2, (5 + 2) * width)
  return parts


def of_crt(fields: CRTConfig) -> dict[str, Part]:
  """Returns the components of a CRT; corrections.py defines what its correction contains."""
  variant, width = corrections.variant_of(fields.correction), fields.width
  squares, vectors = variant.sizes(variant.parts)
  matrices, vectors, attended = squares * width**2, vectors * width, 0
  if 'attention' in variant.parts:
    attended = _query_width(fields)
    # The heads together may be wider or narrower than C.
    matrices += 4 * width * (attended - width)
    vectors += 3 * (attended - width)
  style = style_of(fields)
  borrowed = style.feed_forward(fields) if 'feed_forward' in variant.tied else 0
  correction = Part(matrices, vectors, attended, borrowed=borrowed)
  return style.ends(fields) | _crt_block(fields) | {'correction': correction}


def _crt_block(fields: CRTConfig) -> dict[str, Part]:
  """Returns the components of the block that `fields` selects."""
  if fields.block == 'cart':
    return _cart_block(fields)
  if not fields.layers:
    raise ValueError('model.layers is missing; parameters and FLOPs follow from it')
  return {'layers': style_of(fields).layers(fields)}


def of_cart(fields: CARTConfig) -> dict[str, Part]:
  """Returns the components of a CART; loops count as applications of its core."""
  return _tied_ends(fields) | _cart_block(fields)


def _cart_block(fields: CARTConfig | CRTConfig) -> dict[str, Part]:
  """Returns the components of a CART without embedding and head."""
  width, loops, preludes = fields.width, fields.loops, fields.prelude_layers
  keys_values = _keys_values(fields)
  cross_layer = 2 * width**2 + _gated_feed_forward(fields)
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
  """Returns embedding and head of the CRT paper's models: LayerNorm, output matrix, bias."""
  table = fields.vocab_size * fields.width
  head = Part(table, fields.vocab_size + 2 * fields.width)
  return {'embedding': Part(vectors=table), 'head': head}


def _tied_ends(fields: ModelConfig) -> dict[str, Part]:
  """Returns embedding and head of CART: the embedding is the output matrix; RMSNorm."""
  return {
    'embedding': Part(vectors=fields.vocab_size * fields.width),
    'head': Part(vectors=fields.width),
  }


def _llama_ends(fields: CRTConfig | TransformerConfig) -> dict[str, Part]:
  """Returns embedding and head of Llama: RMSNorm, an output matrix unless tied."""
  matrix = 0 if fields.tied else fields.vocab_size * fields.width
  return _tied_ends(fields) | {'head': Part(matrix, fields.width)}


def _gpt2_ends(fields: CRTConfig | TransformerConfig) -> dict[str, Part]:
  """Returns embedding and head of GPT-2: tied output, learned positions, LayerNorm."""
  positions = Part(vectors=fields.max_positions * fields.width)
  return _tied_ends(fields) | {'positions': positions, 'head': Part(vectors=2 * fields.width)}


def _roformer_layers(fields: CRTConfig | TransformerConfig) -> Part:
  """Returns layers of 12 C^2 + 13 C: attention, feed-forward of width 4C, biases, two norms."""
  width, layers = fields.width, fields.layers
  return Part(12 * width**2, 13 * width, width, layers, layers)


def _cart_dense_layers(fields: TransformerConfig) -> Part:
  width, layers = fields.width, fields.layers
  weights = 2 * width**2 + _keys_values(fields) + _gated_feed_forward(fields)
  return Part(weights, 2 * width, width, layers, layers)


def _llama_layers(fields: CRTConfig | TransformerConfig) -> Part:
  """Returns layers of queries and output 2 C H A, keys and values 2 C G A, and SwiGLU 3 C F."""
  require(
    fields.heads, 'model.heads is missing; parameters and FLOPs follow from it and model.kv_heads'
  )
  width, layers, head_width = fields.width, fields.layers, _query_width(fields) // fields.heads
  kv_heads = fields.kv_heads or fields.heads
  queries, keys = fields.heads * head_width, kv_heads * head_width
  matrices = 2 * width * (queries + keys) + _gated_feed_forward(fields)
  biases = queries + 2 * keys if fields.qkv_bias else 0
  vectors = 2 * width + biases + 2 * head_width * fields.qk_norm
  return Part(matrices, vectors, queries, layers, layers, shared=fields.heads // kv_heads)


def _gpt2_layers(fields: CRTConfig | TransformerConfig) -> Part:
  """Returns layers of 4 C^2 + 2 C F, biases and two LayerNorms."""
  width, layers, feed_forward = fields.width, fields.layers, _plain_feed_forward(fields)
  vectors = 9 * width + feed_forward // (2 * width)
  return Part(4 * width**2 + feed_forward, vectors, width, layers, layers)


def _query_width(fields: CRTConfig | TransformerConfig) -> int:
  """Returns H A, which is C unless both `heads` and `head_width` are given."""
  return fields.heads * fields.head_width or fields.width


def _keys_values(fields: CARTConfig | CRTConfig | TransformerConfig) -> int:
  """Returns the size of the key and value projections.

  They go through a latent of width C / ratio, or are two full matrices if the ratio is 0.
  """
  if not fields.latent_ratio:
    return 2 * fields.width**2
  return 3 * (fields.width // fields.latent_ratio) * fields.width


def _gated_feed_forward(fields: ModelConfig) -> int:
  """Returns the size of the three matrices of a SwiGLU."""
  hidden = getattr(fields, 'feed_forward_width', 0) or swiglu_width(fields.width)
  return 3 * fields.width * hidden


def _plain_feed_forward(fields: LayerFields) -> int:
  """Returns the size of the two matrices of a feed-forward network."""
  return 2 * fields.width * (fields.feed_forward_width or 4 * fields.width)


class Style(NamedTuple):
  """The formulas of a style of layers: embedding and head, layers, one feed-forward network."""

  ends: Callable
  layers: Callable
  feed_forward: Callable


_STYLES = {
  'roformer': Style(_untied_ends, _roformer_layers, _plain_feed_forward),
  'roformer_head_ffn': Style(_untied_ends, _roformer_layers, _plain_feed_forward),
  'cart_dense': Style(_tied_ends, _cart_dense_layers, _gated_feed_forward),
  'llama': Style(_llama_ends, _llama_layers, _gated_feed_forward),
  'gpt2': Style(_gpt2_ends, _gpt2_layers, _plain_feed_forward),
}


def style_of(fields: CRTConfig | TransformerConfig) -> Style:
  """Returns the formulas of the style that `fields` selects; ValueError if there are none."""
  one_of('model.style', fields.style, _STYLES)
  return _STYLES[fields.style]


def work_of_crt(fields: CRTConfig, training: bool, sequential: bool) -> dict[str, Work]:
  """Returns how often block and correction of a CRT run over a sequence, or over each chunk.

  There are K - 1 corrections between the passes, one before them with start='corrected', and one
  after them if something reads x^(K+1) or the next chunk reads the summary. If the network is part
  of the summary, the first input needs no correction.
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
  """Returns how often the core runs; loops before the last `backprop_loops` run forward only."""
  del training, sequential
  if not fields.backprop_loops:
    return {}
  return {'core': Work(1, min(fields.backprop_loops / fields.loops, 1))}
