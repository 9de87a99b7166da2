"""Trained parameters as the beginning of another model: a transformer becomes a CRT (crt.md 6).

Layers, embedding, final norm and output layer are copied, the correction is new, and what its
network adds begins at zero. So the CRT begins as the transformer, for every number of passes and in
sequence; where its correction acts without a network ('block_head' and others) it begins
disturbed. 'sa' pays for its attention with a layer: it takes the first D of D + 1.
"""

import functools

import jax
import jax.numpy as jnp

from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.models.crt import CRT
from crt_jax.models.transformer import Transformer

FIELDS = ('style', 'vocab_size', 'width', 'heads', 'head_width', 'rotary', 'rotary_theta', 'window')
COPIED = ('embedding', 'layers', 'final_norm', 'output')


def check(model: Model, source: Model) -> None:
  """Raises ValueError unless `model` can begin with the parameters of `source`."""
  config, given = model.config, source.config
  kinds = given.name, config.name
  if isinstance(source, Transformer) and isinstance(model, CRT):
    config, given = model.config, source.config
    if given.style != 'roformer':
      raise ValueError(
        f"model.style={given.style!r}: only a 'roformer' transformer can become a CRT"
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
  elif kinds[0] != kinds[1]:
    raise ValueError(f'model.name={config.name!r} cannot begin as a trained {given.name!r}')
  for field in FIELDS:
    mine, theirs = getattr(config, field, None), getattr(given, field, None)
    if mine != theirs:
      raise ValueError(f'model.{field}={mine} is {theirs} in the trained model; use that')
  if kinds[0] == kinds[1]:
    mine, theirs = _shapes(model), _shapes(source)
    for path in sorted(mine.keys() | theirs.keys()):
      if mine.get(path) != theirs.get(path):
        raise ValueError(
          f'parameter {path} has shape {mine.get(path)}, and {theirs.get(path)} in the trained '
          'model; use its config.model'
        )


def begin(model: Model, source: Model, params: dict, key: jax.Array) -> dict:
  """Returns parameters of `model` that begin as those of `source`, which passed `check`.

  Args:
    params: of `source`.
    key: what is new is drawn from it.
  """
  if type(model) is type(source):
    return params
  new = model.init(key)
  copied = {name: params[name] for name in COPIED}
  copied['layers'] = jax.tree.map(lambda a: a[: model.config.layers], params['layers'])
  if 'correction' in new:
    dtype = params['embedding']['weight'].dtype
    copied['correction'] = jax.tree.map(lambda a: a.astype(dtype), _silent(new['correction']))
  return copied


def _silent(network: dict) -> dict:
  """A correction whose last projections are zero, so that it adds nothing yet."""
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  last = {'feed_forward': 'down', 'attention': 'out'}
  return {
    name: {part: zeros(a) if part == last.get(name) else a for part, a in module.items()}
    for name, module in network.items()
  }


def _shapes(model: Model) -> dict:
  """Path -> shape of each parameter."""
  leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, random_key(0)))[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): a.shape for path, a in leaves}
