"""The registered models, by the `name` of their configuration."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from crt_jax import schema
from crt_jax.models import attention_choice, decode_kernel, device_defaults
from crt_jax.models.base import Model
from crt_jax.schema import ModelConfig
from crt_jax.schema.fields import one_of, require

MODELS: dict[str, str | type[Model]] = {
  'transformer': 'crt_jax.models.transformer:Transformer',
  'crt': 'crt_jax.models.crt:CRT',
  'cart': 'crt_jax.models.cart:CART',
}


def build(
  config: ConfigDict | Mapping[str, Any] | ModelConfig, device: jax.Device | None = None
) -> Model:
  """Returns the model that `config` describes.

  Args:
    config: a ConfigDict or mapping with `name` and some of that model's fields (the others have
      their defaults), or the `config` of a model.
    device: where the model will run, such as jax.devices()[0], for which 'auto' fields are chosen
      (models/device_defaults.py); None = anywhere. It affects speed and memory, not results.
  Raises:
    ValueError: an unknown key, a missing or invalid value; names the field and the fix.
  """
  name = config.name if isinstance(config, ModelConfig) else config.get('name', '')
  model = model_class(str(name))
  fields = schema.resolve(model.Config, config)
  require(
    # pyrefly: ignore [missing-attribute]: JAX makes its options when it is imported
    fields.dtype != 'float64' or jax.config.jax_enable_x64,
    "model.dtype='float64' needs 64-bit types; set jax_enable_x64 (JAX_ENABLE_X64=1)",
  )
  attention_choice.check(fields)
  decode_kernel.check(fields)
  return model(device_defaults.decide(fields, device))


def model_class(name: str) -> type[Model]:
  """Returns the model class registered under `name`; ValueError if there is none.

  Nothing is imported merely because a config names it: a run directory may come from anywhere.
  """
  try:
    one_of('model.name', name, MODELS)
  except ValueError as error:
    own = name if re.fullmatch(r'[\w.]+:\w+', name) else 'package.module:Class'
    raise ValueError(f'{error}; to import a model of your own: --allow_model={own}') from None
  found = MODELS[name]
  if isinstance(found, str):
    module, cls = found.split(':')
    found = getattr(importlib.import_module(module), cls)
  return found


def register(name: str, cls: type[Model]) -> None:
  """Registers a model class under a `config.model.name` (docs/adding_a_model.md).

  Raises:
    ValueError: another class has the name.
  """
  if MODELS.get(name, cls) is not cls:
    raise ValueError(f'model.name={name!r} is taken by another model; register another name')
  MODELS[name] = cls
  schema.MODELS[name] = cls.Config


def allow(path: str) -> None:
  """Imports the model class 'package.module:Class' and registers it under this name.

  This runs the code of that module, so call it with what a user typed, never with what a file says.

  Raises:
    ValueError: there is no such class of models.
  """
  module, _, name = path.partition(':')
  try:
    cls = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
      f'{path!r} cannot be imported ({error}); write package.module:Class, as seen from here'
    ) from None
  require(
    isinstance(cls, type) and issubclass(cls, Model), f'{path!r} is no class of crt_jax.Model'
  )
  register(path, cls)
