"""A Hugging Face folder: config.json, and safetensors in one file or with an index."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes  # noqa: F401, names bfloat16 to NumPy
import numpy as np
from safetensors import SafetensorError, safe_open

from crt_jax import json_text, storage
from crt_jax.convert.settings import Settings

CONFIG = 'config.json'
Found = TypeVar('Found')
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'


def settings(folder: Path) -> Settings:
  """Returns its config.json; ValueError if it is missing or damaged."""
  file = folder / CONFIG
  if not file.is_file():
    raise ValueError(f'{folder} holds no {CONFIG}: it is neither a run nor a Hugging Face folder')
  return Settings(str(file), _json(file))


class Arrays(Mapping[str, np.ndarray]):
  """The arrays of a folder by name, each read on access.

  Raises:
    ValueError: files are missing or damaged; names them.
  """

  def __init__(self, folder: Path):
    self._file_of = {
      name: file for file in _files(folder) for name in _opened(file, lambda opened: opened.keys())
    }
    if (folder / INDEX).is_file():
      _check_index(folder, self._file_of)

  def __getitem__(self, name: str) -> np.ndarray:
    return _opened(self._file_of[name], lambda opened: opened.get_tensor(name))

  def __iter__(self) -> Iterator[str]:
    return iter(self._file_of)

  def __len__(self) -> int:
    return len(self._file_of)

  @property
  def stored(self) -> list[str]:
    """The number types in the files."""
    kinds = set()
    for file in set(self._file_of.values()):
      kinds |= _opened(file, _kinds)
    return sorted(kinds)


def _kinds(opened: Any) -> set[str]:
  return {opened.get_slice(name).get_dtype() for name in opened.keys()}


def _files(folder: Path) -> list[Path]:
  index = folder / INDEX
  if index.is_file():
    files = [folder / name for name in sorted(set(_index(index).values()))]
    for file in files:
      if not file.is_file():
        raise ValueError(f'{index} names {file.name}, which is missing; fetch it too')
    return files
  if (folder / SINGLE).is_file():
    return [folder / SINGLE]
  others = sorted(file.name for file in folder.glob('*.bin')) or sorted(
    file.name for file in folder.glob('*.pt*')
  )
  if others:
    raise ValueError(
      f'{folder} holds {others[0]} and no {SINGLE}; a pickle may run any code and is not read: '
      'open it with transformers and write it again with save_pretrained, which writes safetensors'
    )
  raise ValueError(f'{folder} holds neither {SINGLE} nor {INDEX}; fetch the weights too')


def _check_index(folder: Path, found: Mapping[str, Path]) -> None:
  for name, file in _index(folder / INDEX).items():
    if found.get(name) != folder / file:
      raise ValueError(f'{folder / file}: array {name!r}, which {INDEX} names, is missing')


def _index(file: Path) -> dict[str, str]:
  names = _json(file).get('weight_map')
  if not isinstance(names, dict):
    raise ValueError(f'{file} has no weight_map; fetch it again')
  for name in names.values():
    if Path(name).name != name:
      raise ValueError(f'{file} names {name!r}, which is outside its folder')
  return names


def _json(file: Path) -> dict:
  try:
    found = json_text.parse(storage.retried(file, file.read_bytes))
  except ValueError as error:
    raise ValueError(f'{file} is not JSON ({error}); fetch it again') from None
  if not isinstance(found, dict):
    raise ValueError(f'{file} is no JSON object; fetch it again')
  return found


def _opened(file: Path, read: Callable[[Any], Found]) -> Found:
  """Returns the result of `read` on an open file, which is closed afterwards."""
  try:
    with safe_open(file, framework='np') as opened:
      return read(opened)
  except (SafetensorError, TypeError) as error:
    why = ' '.join(str(error).split())
    raise ValueError(f'{file} cannot be read ({why}); fetch it again') from None
