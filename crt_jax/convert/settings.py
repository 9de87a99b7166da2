"""The settings of somebody else's model, asked for by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
  """A config.json, or what a .gguf says in its words.

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
    """Returns the value, the default where there is none or null."""
    value = self.values.get(name)
    return default if value is None else value

  def only(self, name: str, *known: Any) -> None:
    """Raises ValueError where a value is given that is not one of those known here."""
    value = self.get(name, known[0])
    if value not in known:
      listed = ' and '.join(map(repr, known))
      raise ValueError(f'{self.place}: {name}={value!r} is not implemented here; {listed} is')
