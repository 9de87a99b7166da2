"""Pretrained models of other projects: their family, and their parameters in our layout."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from crt_jax.convert import gguf_file, gpt2, huggingface, llama, modeling, tree
from crt_jax.convert.slots import check_names, read_params
from crt_jax.models.base import Model
from crt_jax.types import Params

# model_type -> the module with its names and fields.
FAMILIES: dict[str, ModuleType] = {
  'llama': llama,
  'mistral': llama,
  'qwen2': llama,
  'qwen3': llama,
  'gpt2': gpt2,
  modeling.KIND: modeling,
  tree.KIND: tree,
}
# Often requested families, with the part that is not implemented.
MISSING = {
  'olmo2': 'norms behind attention and feed-forward, norms of q and k over the whole width',
  'gpt_neox': 'attention and feed-forward side by side, and angles for a part of each head',
  'phi': 'attention and feed-forward side by side, and angles for a part of each head',
  'phi3': 'fused projections, and the angles of longrope',
  'gemma': 'norms of gain 1 + w, and a scale of the embedding',
  'gemma2': 'norms of gain 1 + w and behind each part, soft caps, windows of every second layer',
  'gemma3_text': 'norms of gain 1 + w and behind each part, and windows that differ by layer',
  'mixtral': 'a mixture of experts',
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A pretrained model of another project, opened but not read.

  Attributes:
    family: as its files call it.
    fields: of `config.model`.
    longest: positions that it was trained on.
    arrays: read when asked for.
    stored: types of the numbers in the files.
  """

  path: Path
  family: str
  fields: dict[str, Any]
  longest: int
  arrays: Mapping[str, np.ndarray]
  stored: list[str]

  def read(self, model: Model, abstract: Params) -> Params:
    """Returns the parameters of `model`, built of `fields`; read_params says how, with `abstract`.

    Raises:
      ValueError: arrays are missing, unexpected or misshapen; names the place and them.
    """
    try:
      names = list(FAMILIES[self.family].slots(model.config))
      check_names(names, self.arrays)
      return read_params(names, self.arrays, abstract)
    except ValueError as error:
      known = str(error).startswith(str(self.path))
      raise ValueError(str(error) if known else f'{self.path}: {error}') from None


def is_pretrained(path: str | Path) -> bool:
  """Returns whether a path is such a model, and not a run of this project."""
  path = Path(path)
  if path.suffix == '.gguf':
    return True
  is_run = (path / 'checkpoints').exists() or (path / 'metrics.jsonl').exists()
  theirs = (huggingface.CONFIG, huggingface.SINGLE, huggingface.INDEX)
  return not is_run and any((path / name).exists() for name in theirs)


def open_pretrained(path: str | Path) -> Pretrained:
  """Opens a Hugging Face folder or a .gguf file.

  Raises:
    ValueError: it is missing, damaged, or of a family or kind that is not implemented.
  """
  path = Path(path)
  if path.suffix == '.gguf':
    arrays = gguf_file.Arrays(path)
    given = arrays.settings
  else:
    given = huggingface.settings(path)
  family = given['model_type']
  if family not in FAMILIES:
    why = f', which needs {MISSING[family]}' if family in MISSING else ''
    raise ValueError(
      f'{given.place}: model_type={family!r}{why} is not implemented; there are '
      f'{", ".join(FAMILIES)}'
    )
  module = FAMILIES[family]
  fields = {'name': 'transformer', **module.fields(given)}
  if path.suffix != '.gguf':
    arrays = huggingface.Arrays(path)
  named = _Named(arrays, module.PREFIX, module.IGNORED)
  return Pretrained(path, family, fields, module.longest(given), named, arrays.stored)


class _Named(Mapping[str, np.ndarray]):
  """Arrays by their full names, which a file without a head shortens, without derived arrays."""

  def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str, ignored: tuple[str, ...]):
    self._arrays = arrays
    is_short = not any(name.startswith(prefix) for name in arrays)
    self._name_of = {
      prefix + name if is_short and not name.startswith('lm_head.') else name: name
      for name in arrays
      if not name.endswith(ignored)
    }

  def __getitem__(self, name: str) -> np.ndarray:
    return self._arrays[self._name_of[name]]

  def __iter__(self) -> Iterator[str]:
    return iter(self._name_of)

  def __len__(self) -> int:
    return len(self._name_of)
