"""Loads a trained model from a run, a Hugging Face folder or a .gguf file."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crt_jax import schema
from crt_jax.data import vocabularies
from crt_jax.data.tokenizers import ByteTokenizer, JsonTokenizer
from crt_jax.models.base import Model
from crt_jax.models.registry import build, model_class
from crt_jax.runs import checkpoint
from crt_jax.schema.fields import require

if TYPE_CHECKING:
  from crt_jax.convert.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained model and what belongs to it.

  Attributes:
    model, params: see the contract (models/base.py).
    tokenizer: the tokenizer of its training text.
    config: the config of the run; for other sources the defaults with their model and tokenizer.
    step: the number of updates; 0 for other sources.
  """

  model: Model
  params: dict[str, Any]
  tokenizer: ByteTokenizer | JsonTokenizer
  config: ConfigDict
  step: int


def load(
  path: str, step: int | None = None, mesh: Mesh | Callable[[ConfigDict], Mesh] | None = None
) -> Trained:
  """Reads a trained model; changes no file.

  Args:
    path: the work directory of a run, finished or not, a Hugging Face folder, or a .gguf file.
    step: which checkpoint of a run; None = the newest complete one.
    mesh: a mesh for the parameters, or a function of the run's config that returns one; None = one
      device.

  Raises:
    ValueError: there is no readable model, checkpoint or step; names the path.
  """
  from crt_jax.convert import pretrained  # which a run does not need

  if pretrained.is_pretrained(path):
    require(step is None, f'{path} has no checkpoints, which are what a step chooses from')
    return read_pretrained(pretrained.open_pretrained(path), mesh)
  config, params, tokenizer, step = checkpoint.load_params(path, step, mesh)
  return Trained(build(config.model, jax.devices()[0]), params, tokenizer, config, step)


TEXT = 1024  # the sequence length, if a model takes that many positions


def read_pretrained(
  source: 'Pretrained', mesh: Mesh | Callable[[ConfigDict], Mesh] | None = None
) -> Trained:
  """Reads a Hugging Face folder or a .gguf file, as `load` does."""
  path = source.path
  try:
    cls = model_class(source.fields['name']).Config
    config = schema.experiment(schema.complete(cls, source.fields))
    config.model.vocab_size = source.fields['vocab_size']
    model = build(config.model, jax.devices()[0])
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None
  config.data.update(tokenizer=str(path), sequence_length=min(source.longest, TEXT))
  tokenizer = vocabularies.of_model(str(path))
  if tokenizer.vocab_size > model.config.vocab_size:
    raise ValueError(
      f'{path}: its tokenizer has {tokenizer.vocab_size} tokens and its model '
      f'{model.config.vocab_size}; they do not belong together'
    )
  config.data.separator = vocabularies.separator_of_model(str(path), tokenizer)
  place = mesh if mesh is None or isinstance(mesh, Mesh) else mesh(config)
  params = source.read(model, checkpoint.abstract_params(model, place))
  return Trained(model, params, tokenizer, config, 0)
