"""The settings of a pretrained model, read by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
  """A config.json, or the settings of a .gguf file under the same names.

  Attributes:
    place: the file, for messages.
  """

  place: str
  values: Mapping[str, Any]

  def __getitem__(self, name: str) -> Any:
    if self.values.get(name) is None:
      raise ValueError(f'{self.place}: {name} is missing')
    return self.values[name]

  def get(self, name: str, default: Any = None) -> Any:
    """Returns a value, or the default if it is missing or null."""
    value = self.values.get(name)
    return default if value is None else value

  def only(self, name: str, *known: Any) -> None:
    """Raises ValueError for a value that is not one of the supported ones."""
    value = self.get(name, known[0])
    if value not in known:
      listed = ' and '.join(map(repr, known))
      raise ValueError(f'{self.place}: {name}={value!r} is not implemented here; {listed} is')
