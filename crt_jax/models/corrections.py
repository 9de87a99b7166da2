"""CRT's correction and its variants (crt.md 2.5 and 9), each a pair of pure functions.

`summary` is what a position hands to its successor, `inject` prepares the successor's input from
it: the paper's CRT has summary z and inject e + F(LN(s_prev + e)). Parallel passes and the
sequential form use the same pair, and s_{-1} = 0.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from crt_jax.layers.norm import Norm
from crt_jax.models.config import ModelConfig
from crt_jax.models.stack import (
  apply_module,
  first_layer,
  roformer_attention,
  roformer_feed_forward,
  with_layer_axis,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Variant:
  """What distinguishes one correction from another.

  Attributes:
    delta: the summary reads z - x instead of z.
    network: where F(LN(.)) stands: 'inject', 'summary', or '' for none.
    reads: what the network in inject reads: 'sum' = s + e, 'token' = e, 'concat' = [s; e],
      'attention' = u + Attention(LN(u)) with u = s + e.
    direct: the summary itself is added to the input.
    tied: F is the last layer's own feed-forward; 'norm' ties LN too.
    head_reads_input: the head reads x^(K+1) instead of z^(K).
  """

  delta: bool = False
  network: str = 'inject'
  reads: str = 'sum'
  direct: bool = False
  tied: str = ''
  head_reads_input: bool = False

  def exact_depth(self, position: int, start: str) -> int:
    """The smallest K from which parallel passes are exact at `position` (0-based)."""
    if self.reads == 'token':
      return 1 if start == 'corrected' else 2
    # At position 0 the summary is zero, and without a network there the first input is final.
    first_is_final = start == 'corrected' or self.network != 'inject'
    passes = position + (1 if first_is_final else 2)
    return max(1, passes - 1) if self.head_reads_input else passes


VARIANTS = {
  'add': Variant(),
  'stateless': Variant(reads='token'),
  'token_blind': Variant(network='summary', direct=True),
  'concat': Variant(reads='concat'),
  'block_head': Variant(delta=True, network='', direct=True),
  'nosub': Variant(network='', direct=True),
  'delta_ffn': Variant(delta=True, network='summary', direct=True),
  'delta_ffn_add': Variant(delta=True),
  'tied': Variant(tied='feed_forward'),
  'pure': Variant(direct=True),
  'tied_pure': Variant(direct=True, tied='norm'),
  'px': Variant(head_reads_input=True),
  'sa': Variant(reads='attention'),
}


def modules(variant: Variant, config: ModelConfig) -> dict:
  """The linen modules whose parameters belong to the correction alone, by name."""
  if not variant.network or variant.tied == 'norm':
    return {}
  if variant.tied:
    return dict(norm=Norm(config.width))
  if variant.reads == 'concat':
    double = 2 * config.width
    feed_forward = roformer_feed_forward(config, in_width=double, dropout_inside=True)
    return dict(norm=Norm(double), feed_forward=feed_forward)
  network = dict(norm=Norm(config.width), feed_forward=roformer_feed_forward(config))
  if variant.reads == 'attention':
    network |= dict(attention_norm=Norm(config.width), attention=roformer_attention(config))
  return network


def functions(
  variant: Variant, config: ModelConfig, params: dict, cumulative: bool
) -> tuple[Callable, Callable]:
  """`summary` and `inject` of recurrence/context.py, closed over the model's parameters."""
  network = modules(variant, config)
  weights = params.get('correction', {})
  if variant.tied:
    layers = params['layers']
    is_stacked = isinstance(layers, dict)
    last_layer = jax.tree.map(lambda a: a[-1], layers) if is_stacked else layers[-1]
    weights = weights | dict(feed_forward=last_layer['feed_forward'])
    network = network | dict(feed_forward=roformer_feed_forward(config))
  if variant.tied == 'norm':
    weights = weights | dict(norm=last_layer['norm2'])
    network = network | dict(norm=Norm(config.width))

  def correct(u, key):
    normed = apply_module(network['norm'], weights['norm'], u)
    y = apply_module(network['feed_forward'], weights['feed_forward'], normed, key=key)
    return y.astype(u.dtype)

  def summary(z_BxTxC, x_BxTxC, key=None):
    s_BxTxC = z_BxTxC - x_BxTxC if variant.delta else z_BxTxC
    return correct(s_BxTxC, key) if variant.network == 'summary' else s_BxTxC

  def inject(s_BxTxC, e_BxTxC, x_BxTxC, key=None, cache=None):
    base_BxTxC = x_BxTxC if cumulative else e_BxTxC
    entries = None
    if variant.direct:
      base_BxTxC = base_BxTxC + s_BxTxC
    if variant.network != 'inject':
      return base_BxTxC, entries
    if variant.reads == 'token':
      u = e_BxTxC
    elif variant.reads == 'concat':
      u = jnp.concatenate([s_BxTxC, e_BxTxC], axis=-1)
    else:
      u = s_BxTxC + e_BxTxC
    if variant.reads == 'attention':
      attention_key, key = (None, None) if key is None else jax.random.split(key)
      mixed, entries = _attend(network, weights, u, cache, attention_key)
      u = u + mixed.astype(u.dtype)
    return base_BxTxC + correct(u, key), entries

  return summary, inject


def _attend(network: dict, weights: dict, u_BxTxC: Array, past, key):
  """The attention of 'sa', with a cache of its own."""
  normed = apply_module(network['attention_norm'], weights['attention_norm'], u_BxTxC)
  mixed, entries = apply_module(
    network['attention'], weights['attention'], normed, first_layer(past), key=key
  )
  return mixed, with_layer_axis(entries)
