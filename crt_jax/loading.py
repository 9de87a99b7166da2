"""A trained model from where it lies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crt_jax.data.tokenizers import ByteTokenizer, JsonTokenizer
from crt_jax.models.base import Model, build
from crt_jax.runs import checkpoint


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained model and what belongs to it.

  Attributes:
    model, params: as of the contract (models/base.py).
    tokenizer: of the text that it was trained on.
    config: of the run.
    step: updates behind the parameters.
  """

  model: Model
  params: dict[str, Any]
  tokenizer: ByteTokenizer | JsonTokenizer
  config: ConfigDict
  step: int


def load(
  path: str, step: int | None = None, mesh: Mesh | Callable[[ConfigDict], Mesh] | None = None
) -> Trained:
  """Reads the model of a run, which is not changed.

  Args:
    path: work directory of a run, finished or not.
    step: which checkpoint; None = the newest that is whole.
    mesh: where the parameters are to lie, or what makes it of the run's config; None = one device.

  Raises:
    ValueError: there is no run, checkpoint or step; names the place.
  """
  config, params, tokenizer, step = checkpoint.load_params(path, step, mesh)
  return Trained(build(config.model, jax.devices()[0]), params, tokenizer, config, step)
