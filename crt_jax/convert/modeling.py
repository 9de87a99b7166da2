"""CRT and CART by the names in their PyTorch file, assets/modeling_crt_jax.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from crt_jax.convert import tree
from crt_jax.convert.slots import Slot
from crt_jax.convert.tree import IGNORED, PREFIX, fields, longest  # noqa: F401, of the family
from crt_jax.keys import random_key
from crt_jax.schema import CARTConfig, CRTConfig

KIND = 'crt_jax'
FILE = Path(__file__).parent / 'assets' / 'modeling_crt_jax.py'
_IN_A_LAYER = ('norm1', 'norm2', 'attention', 'feed_forward')


def settings(config: CRTConfig | CARTConfig, positions: int) -> dict[str, Any]:
  """Returns the config.json, the inverse of `fields`; ValueError if the file has no such model."""
  if isinstance(config, CRTConfig):
    config.require_sequential_form('generation in transformers')
  return tree.settings(config, positions) | dict(
    model_type=KIND,
    architectures=['CRTJaxForCausalLM'],
    auto_map={
      'AutoConfig': f'{FILE.stem}.CRTJaxConfig',
      'AutoModelForCausalLM': f'{FILE.stem}.CRTJaxForCausalLM',
    },
    hidden_size=config.width,
    num_attention_heads=config.heads,
    tie_word_embeddings=False,  # a tied matrix is stored once there too
  )


def slots(config: CRTConfig | CARTConfig) -> Iterator[Slot]:
  """Returns a Slot for every array of a model: layers one by one, each matrix as [out, in]."""
  model = tree.model_of(config)
  shapes = dict(tree.leaves(jax.eval_shape(model.init, random_key(0))))
  for path, axes in tree.leaves(model.axes()):
    shape, is_stacked = shapes[path].shape, axes[0] in ('layers', 'loops')
    for index in [(i,) for i in range(shape[0])] if is_stacked else [()]:
      name, ndim = _name(config, path, index), len(shape) - len(index)
      outputs = ndim - (path[-1] != 'bias')
      merged = -2 if path[-2] == 'out' and ndim == 3 else outputs if outputs > 1 else 0
      yield Slot(name, path, index, merged)


def _name(config: CRTConfig | CARTConfig, path: tuple[str, ...], index: tuple[int, ...]) -> str:
  """Returns the PyTorch name of a parameter, or of its slice."""
  if path == ('embedding', 'positions'):
    return 'positions.weight'
  words = list(path)
  if isinstance(config, CARTConfig) and path[0] not in ('embedding', 'final_norm'):
    words.insert(0, 'layers')
  if index:
    words.insert(next(i for i, word in enumerate(words) if word in _IN_A_LAYER), str(index[0]))
  return '.'.join('weight' if word == 'scale' else word for word in words)
