"""Models in the layout of this project: each parameter is an array, named by its dotted path."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from crt_jax.convert.settings import Settings
from crt_jax.convert.slots import Slot
from crt_jax.models.base import Model
from crt_jax.models.registry import model_class
from crt_jax.schema import ModelConfig
from crt_jax.schema.fields import require

KIND = 'crt_jax_tree'
PREFIX, IGNORED = '', ()


def longest(given: Settings) -> int:
  """Returns the longest length that the model was trained on."""
  return given['max_position_embeddings']


def fields(given: Settings) -> dict[str, Any]:
  """Returns all fields of the model."""
  model = given['model']
  require(
    isinstance(model, dict) and {'name', 'vocab_size'} <= model.keys(),
    f'{given.place}: model={model!r} must be an object with name, vocab_size and other fields',
  )
  return model


def settings(config: ModelConfig, positions: int) -> dict[str, Any]:
  """Returns the config.json, the inverse of `fields`."""
  return dict(
    model_type=KIND,
    model=dataclasses.asdict(config),
    vocab_size=config.vocab_size,
    max_position_embeddings=positions,
  )


def slots(config: ModelConfig) -> Iterator[Slot]:
  """Returns a Slot for every array of a model."""
  for path, _ in leaves(model_of(config).axes()):
    yield Slot('.'.join(path), path)


def model_of(config: ModelConfig) -> Model:
  """Returns the model of a checked configuration."""
  return model_class(config.name)(config)


def leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
  """Returns the leaves of a nested dict, each with its path."""
  found = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [(tuple(key.key for key in path), leaf) for path, leaf in found]
