"""Starts a model from trained parameters of another: a transformer becomes a CRT (crt.md 6).

Layers, embedding, final norm and output layer are copied. The correction is new, and what its
network adds starts at zero, so the CRT starts as the transformer, for every number of passes and in
sequence. A correction without a network ('block_head' and others) changes the outputs from the
start. 'sa' uses one layer for its attention: it takes the first D of D + 1.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from crt_jax import schema
from crt_jax.keys import random_key
from crt_jax.models import corrections
from crt_jax.models.base import Model
from crt_jax.models.crt import CRT
from crt_jax.models.transformer import Transformer
from crt_jax.schema import LayerFields, ModelConfig, TransformerConfig
from crt_jax.schema.layers import STYLES
from crt_jax.schema.model import names_of

# Fields that must be equal in both models: those of layers, embedding and head.
FIELDS = (
  *('vocab_size', 'width', 'heads', 'head_width', 'window'),
  *sorted(names_of(LayerFields) - names_of(ModelConfig)),
)
COPIED = ('embedding', 'layers', 'final_norm', 'output')


def check(model: Model, source: Model) -> None:
  """Raises ValueError unless `model` can start from the parameters of `source`."""
  config, given = model.config, source.config
  if isinstance(source, Transformer) and isinstance(model, CRT):
    if given.style not in STYLES:
      raise ValueError(
        f'model.style={given.style!r}: only a {", ".join(map(repr, STYLES))} transformer can '
        'become a CRT'
      )
    if config.block != 'transformer':
      raise ValueError(
        f"model.block={config.block!r}: only a CRT over model.block='transformer' can begin as a "
        'trained transformer'
      )
    layers = config.layers + ('attention' in model.variant.parts)
    if given.layers != layers:
      raise ValueError(
        f'model.layers={config.layers} with model.correction={config.correction!r} begins as a '
        f'transformer of {layers} layers; the trained one has {given.layers}'
      )
  elif type(model) is not type(source):
    raise ValueError(f'model.name={config.name!r} cannot begin as a trained {given.name!r}')
  for field in FIELDS:
    mine, theirs = getattr(config, field, None), getattr(given, field, None)
    if mine != theirs:
      raise ValueError(f'model.{field}={mine} is {theirs} in the trained model; use that')
  if type(model) is type(source):
    mine, theirs = _shapes(model), _shapes(source)
    for path in sorted(mine.keys() | theirs.keys()):
      if mine.get(path) != theirs.get(path):
        raise ValueError(
          f'parameter {path} has shape {mine.get(path)}, and {theirs.get(path)} in the trained '
          'model; use its config.model'
        )


def corrected(config: TransformerConfig, correction: str) -> ConfigDict:
  """Returns `config.model` of a CRT that can start from a transformer, with default passes."""
  kept = {name: getattr(config, name) for name in (*FIELDS, 'dropout', 'dtype')}
  layers = config.layers - ('attention' in corrections.variant_of(correction).parts)
  return ConfigDict(schema.crt_model(**kept, layers=layers, correction=correction))


def begin(model: Model, source: Model, params: dict, key: jax.Array) -> dict:
  """Returns parameters of `model` that start as those of `source`, which passed `check`.

  Args:
    params: of `source`.
    key: what is new is drawn from it.
  """
  if type(model) is type(source):
    return params
  copied = {name: params[name] for name in COPIED if name in params}
  copied['layers'] = jax.tree.map(lambda a: a[: model.config.layers], params['layers'])
  correction = _silent(model, key)
  if correction:
    dtype = params['embedding']['weight'].dtype
    copied['correction'] = jax.tree.map(lambda a: a.astype(dtype), correction)
  return copied


@functools.partial(jax.jit, static_argnums=0)  # XLA then draws only the correction's parameters
def _silent(model: Model, key: jax.Array) -> dict:
  """Returns a correction whose last projections are zero, so it adds nothing; {} for none."""
  network = model.init(key).get('correction', {})
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  last = {'feed_forward': 'down', 'attention': 'out'}
  return {
    name: {part: zeros(a) if part == last.get(name) else a for part, a in module.items()}
    for name, module in network.items()
  }


def _shapes(model: Model) -> dict:
  """Returns path -> shape of each parameter."""
  leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, random_key(0)))[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): a.shape for path, a in leaves}
