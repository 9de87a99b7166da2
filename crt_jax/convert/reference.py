"""Parameters from and to arrays under the names of the published implementations.

Linear weights are [out, in] on both sides; here q|k|v and gate|up are fused and layers are
stacked, so each reference array is one slice of one parameter and needs no transpose.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from crt_jax.convert.slots import Slot, arrays_of, check_names, read_params
from crt_jax.keys import random_key
from crt_jax.models import corrections
from crt_jax.models.base import Model
from crt_jax.models.cart import CART, CARTConfig
from crt_jax.models.crt import CRT, CRTConfig
from crt_jax.models.registry import build
from crt_jax.models.transformer import Transformer, TransformerConfig
from crt_jax.schema.fields import require


def import_params(config: ConfigDict, arrays: Mapping[str, np.ndarray]) -> dict:
  """Returns the parameters of `build(config)` from reference arrays.

  Args:
    config: `config.model`.
    arrays: by reference name, without prefix. float16 becomes float32, float64 stays (under x64).
  Raises:
    ValueError: names missing, unexpected, misshapen or unequal repeated arrays.
  """
  model = build(config)
  slots = list(reference_slots(model))
  check_names(slots, arrays, 'reference arrays')
  floor = jnp.dtype(model.config.param_dtype)
  widest = max((np.asarray(a).dtype for a in arrays.values()), key=lambda d: d.itemsize)
  dtype = np.promote_types(widest, floor)
  shapes = jax.eval_shape(model.init, random_key(0))
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), shapes)
  return read_params(slots, arrays, abstract)


def export_arrays(config: ConfigDict, params: dict) -> dict[str, np.ndarray]:
  """Returns the reference arrays of `params`, the inverse of `import_params`; tied arrays once."""
  return arrays_of(reference_slots(build(config)), params)


def reference_slots(model: Model) -> Iterator[Slot]:
  """Returns a Slot for every reference array; ValueError if no names were published."""
  if isinstance(model, CART):
    yield from _cart(model.config)
  elif isinstance(model, Transformer) and model.config.style == 'cart_dense':
    yield from _cart_dense(model.config)
  elif isinstance(model, Transformer | CRT):
    require(
      model.config.style in ('roformer', 'roformer_head_ffn'),
      f'model.style={model.config.style!r} has no reference arrays; only the models of the two '
      'papers have',
    )
    yield from _roformer_family(model.config)


def _roformer_family(config: CRTConfig | TransformerConfig) -> Iterator[Slot]:
  is_crt = isinstance(config, CRTConfig)
  pointer_chasing = config.rotary == 'integer'
  table = 'token_embedding' if pointer_chasing else 'token_embedding_table'
  yield Slot(f'{table}.weight', ('embedding', 'weight'))
  for i in range(config.layers):
    prefix = 'block' if is_crt and config.layers == 1 else f'blocks.{i}'
    yield from _attention(f'{prefix}.sa_head', ('layers', 'attention'), (i,), config)
    yield from _feed_forward(f'{prefix}.ffn', ('layers', 'feed_forward'), (i,))
    yield from _layer_norm(f'{prefix}.ln1', ('layers', 'norm1'), (i,))
    yield from _layer_norm(f'{prefix}.ln2', ('layers', 'norm2'), (i,))
  if isinstance(config, CRTConfig) and config.block == 'cart':
    for slot in _cart_block(config.cart):
      yield dataclasses.replace(slot, name=f'block.{slot.name}', path=('layers', *slot.path))
  if isinstance(config, CRTConfig):
    yield from _correction(config)
  elif config.style == 'roformer_head_ffn':
    yield from _feed_forward('head_ffn', ('head_feed_forward',))
    yield from _layer_norm('ln_h', ('head_norm',))
  yield from _layer_norm('ln_f', ('final_norm',))
  output = 'head' if is_crt or pointer_chasing else 'lm_head'
  yield from _weight_and_bias(output, ('output',))


def _correction(config: CRTConfig) -> Iterator[Slot]:
  """Returns the correction's slots; tied variants may repeat the last layer's (crt.md 9)."""
  variant, last = corrections.variant_of(config.correction), (config.layers - 1,)
  attends = 'attention' in variant.parts
  made = {
    'feed_forward': functools.partial(_feed_forward, 'corr_ffn'),
    'norm': functools.partial(_layer_norm, 'ln_corr_ffn' if attends else 'ln_corr'),
    'attention': functools.partial(_attention, 'corr_attn', config=config),
    'attention_norm': functools.partial(_layer_norm, 'ln_corr_attn'),
  }
  for part in variant.parts:
    yield from made[part](('correction', part), ())
  for part in variant.tied:
    yield from _again(made[part](('layers', corrections.LAST_LAYER[part]), last))


def _attention(
  name: str, path: tuple, index: tuple, config: CRTConfig | TransformerConfig
) -> Iterator[Slot]:
  """Returns the slots of attention; the reference calls its query projection keys (crt.md 2.3)."""
  roles = ['queries', 'keys', 'values']
  if config.rotary == 'integer_reversed':
    roles[:2] = 'keys', 'queries'
  for role, part in enumerate(roles):
    yield Slot(f'{name}.{part}.weight', (*path, 'qkv', 'weight'), (*index, role), 2)
    yield Slot(f'{name}.{part}.bias', (*path, 'qkv', 'bias'), (*index, role), 2)
  yield Slot(f'{name}.proj.weight', (*path, 'out', 'weight'), index, -2)
  yield Slot(f'{name}.proj.bias', (*path, 'out', 'bias'), index)


def _feed_forward(name: str, path: tuple, index: tuple = ()) -> Iterator[Slot]:
  yield from _weight_and_bias(f'{name}.ffn.0', (*path, 'up'), index)
  yield from _weight_and_bias(f'{name}.ffn.2', (*path, 'down'), index)


def _layer_norm(name: str, path: tuple, index: tuple = ()) -> Iterator[Slot]:
  yield Slot(f'{name}.weight', (*path, 'scale'), index)
  yield Slot(f'{name}.bias', (*path, 'bias'), index)


def _weight_and_bias(name: str, path: tuple, index: tuple = ()) -> Iterator[Slot]:
  yield Slot(f'{name}.weight', (*path, 'weight'), index)
  yield Slot(f'{name}.bias', (*path, 'bias'), index)


def _again(slots: Iterator[Slot]) -> Iterator[Slot]:
  return (dataclasses.replace(slot, again=True) for slot in slots)


def _cart_dense(config: TransformerConfig) -> Iterator[Slot]:
  yield Slot('embedding.weight', ('embedding', 'weight'))
  for i in range(config.layers):
    if config.latent_ratio:
      yield from _cart_layer(f'layers.{i}', ('layers',), (i,), config, own_keys=True)
      continue
    path = ('layers', 'attention')
    for role, part in enumerate('qkv'):
      yield Slot(f'layers.{i}.attn.{part}_proj.weight', (*path, 'qkv', 'weight'), (i, role), 2)
    yield Slot(f'layers.{i}.attn.o_proj.weight', (*path, 'out', 'weight'), (i,), -2)
    yield from _cart_rest(f'layers.{i}', ('layers',), (i,))
  yield Slot('final_norm.weight', ('final_norm', 'scale'))


def _cart(config: CARTConfig) -> Iterator[Slot]:
  yield Slot('embedding.weight', ('embedding', 'weight'))
  yield from _cart_block(config)
  yield Slot('final_norm.weight', ('final_norm', 'scale'))


def _cart_block(config: CARTConfig) -> Iterator[Slot]:
  for i in range(config.prelude_layers):
    yield from _cart_layer(f'prelude.{i}', ('prelude',), (i,), config, own_keys=True)
  own_keys = config.core == 'self'
  if not own_keys:
    yield from _cart_keys('kv_proj', ('anchor',), (), config)
    if config.anchor_norm:
      yield Slot('kv_proj.norm.weight', ('anchor_norm', 'scale'), optional=True)
  if config.share_core:
    yield from _cart_layer('core', ('core',), (), config, own_keys)
  else:
    for r in range(config.loops):
      yield from _cart_layer(f'core.{r}', ('core',), (r,), config, own_keys)
  yield Slot('hyper.weights', ('blend', 'weight'))
  yield Slot('lti.a_param', ('gate', 'logit'))
  yield Slot('lie.proj.weight', ('loop_code', 'weight'))
  yield from _cart_layer('coda', ('coda',), (), config, own_keys=True)


def _cart_layer(
  name: str, path: tuple, index: tuple, config: CARTConfig | TransformerConfig, own_keys: bool
) -> Iterator[Slot]:
  attention = (*path, 'attention')
  yield Slot(f'{name}.attn.q_proj.weight', (*attention, 'q', 'weight'), index, 2)
  if own_keys:
    yield from _cart_keys(f'{name}.attn', (*attention, 'kv'), index, config)
  yield Slot(f'{name}.attn.o_proj.weight', (*attention, 'out', 'weight'), index, -2)
  yield from _cart_rest(name, path, index)


def _cart_keys(
  name: str, path: tuple, index: tuple, config: CARTConfig | TransformerConfig
) -> Iterator[Slot]:
  """Returns the slots of keys and values, through a latent or full-rank (latent_ratio 0)."""
  up = '{}_up' if config.latent_ratio else '{}_proj'
  if config.latent_ratio:
    yield Slot(f'{name}.kv_down.weight', (*path, 'down', 'weight'), index)
  for role, part in enumerate('kv'):
    yield Slot(f'{name}.{up.format(part)}.weight', (*path, 'up', 'weight'), (*index, role), 2)


def _cart_rest(name: str, path: tuple, index: tuple) -> Iterator[Slot]:
  feed_forward = (*path, 'feed_forward')
  for role, part in enumerate(('gate', 'up')):
    yield Slot(f'{name}.ffn.{part}.weight', (*feed_forward, 'gate_up', 'weight'), (*index, role))
  yield Slot(f'{name}.ffn.down.weight', (*feed_forward, 'down', 'weight'), index)
  for norm in ('norm1', 'norm2'):
    yield Slot(f'{name}.{norm}.weight', (*path, norm, 'scale'), index)
