"""Exports a trained model as a folder: config.json, safetensors and a tokenizer."""

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from crt_jax import json_text, schema, storage
from crt_jax.convert import SAFETENSORS, gpt2, llama, modeling, tokenizer_files, tree
from crt_jax.convert.huggingface import CONFIG, SINGLE
from crt_jax.convert.slots import arrays_of
from crt_jax.loading import Trained
from crt_jax.schema import ModelConfig

STYLES = {'llama': llama, 'gpt2': gpt2}  # of transformers, which have classes elsewhere


def export(trained: Trained, folder: Path, form: str) -> None:
  """Writes a folder, which must not exist, completely or not at all.

  Args:
    form: of convert.FORMATS.

  Raises:
    ValueError: the model cannot be written like that; says why.
    OSError: the folder cannot be written.
  """
  config = schema.resolve(type(trained.model).Config, trained.config.model)
  positions = trained.model.max_positions or trained.config.data.sequence_length
  module, tokenizer = module_of(config, form), trained.tokenizer
  ends = dict(bos_token_id=tokenizer.bos, eos_token_id=tokenizer.eos)
  settings = module.settings(config, positions) | ends | dict(dtype=config.param_dtype)
  arrays = arrays_of(module.slots(config), trained.params)
  arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  with storage.written_whole(folder) as scratch:
    (scratch / CONFIG).write_text(json_text.dumps(settings, indent=2) + '\n', 'utf-8')
    tokenizer_files.write(scratch, tokenizer, trained.config.data.separator, positions)
    if module is modeling:
      shutil.copy(modeling.FILE, scratch)
    try:
      save_file(arrays, scratch / SINGLE, metadata={'format': 'pt'})
    except SafetensorError as error:
      raise OSError(f'{scratch / SINGLE} cannot be written ({error})') from None
    shutil.copymode(scratch / CONFIG, scratch / SINGLE)  # the library lets nobody else read it


def module_of(config: ModelConfig, form: str) -> ModuleType:
  """Returns the module with a model's names in a format; ValueError if there is none."""
  if form == SAFETENSORS:
    return tree
  style = getattr(config, 'style', None)
  if config.name == 'transformer' and style in STYLES:
    return STYLES[style]
  if config.name in ('crt', 'cart'):
    return modeling
  raise ValueError(
    f'model.name={config.name!r} of style {style!r} has no class in transformers; use '
    f'--format={SAFETENSORS}'
  )
