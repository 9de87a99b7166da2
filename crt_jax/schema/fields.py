"""A section of a config as a frozen dataclass, whose fields know their values and meaning:

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class TrainConfig(Section):
    section = 'train'
    steps: int = field(1000, 'updates of the parameters', least=1)

Defaults, checks with their one line each, and `--help` follow from that. Nothing here needs JAX.
"""

import dataclasses
import difflib
import functools
import math
import reprlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
from ml_collections import ConfigDict

LARGEST = 2**31 - 1  # steps and positions are 32-bit numbers on devices
SEEDS = 2**32 - 1  # the largest seed
KINDS = {
  bool: 'true or false (bool)',
  int: 'a whole number (int)',
  float: 'a number (float)',
  str: 'text (str)',
  tuple: 'a tuple',
  dict: 'a mapping of names to sections',
}


@dataclasses.dataclass(frozen=True)
class Values:
  """The values that a field accepts, and its meaning.

  Attributes:
    meaning: one line, with the unit if there is one.
    least, most: inclusive bounds of a number, or of the members of a tuple.
    above, below: exclusive bounds.
    zero: what 0 stands for, if not for the number 0.
    choices: the allowed texts; a mapping has their meanings.
  """

  meaning: str
  least: float = -math.inf
  most: float = math.inf
  above: float = -math.inf
  below: float = math.inf
  zero: str = ''
  choices: tuple[str, ...] | Mapping[str, str] = ()

  def words(self) -> str:
    """Returns one line for a reader: the meaning, what 0 stands for, and the choices."""
    zero = f'0 = {self.zero}' if self.zero else ''
    means = self.choices if isinstance(self.choices, Mapping) else dict.fromkeys(self.choices, '')
    choices = ', '.join(
      f'{name!r}' + (f' ({what})' if what else '') for name, what in means.items()
    )
    return '; '.join(part for part in (self.meaning, zero, choices) if part)

  def fault(self, value: Any) -> str:
    """Returns 'must ...' for a value of the right type that is not allowed, else ''."""
    if self.choices and value not in self.choices:
      return f'must be one of {", ".join(map(repr, self.choices))}{near(value, self.choices)}'
    if isinstance(value, bool | str):
      return ''
    if isinstance(value, float) and not math.isfinite(value):
      return 'must be a finite number'
    if value < self.least:
      is_zero = self.least == 0 and self.zero
      return f'must be 0 ({self.zero}) or more' if is_zero else f'must be at least {self.least}'
    if value <= self.above:
      return f'must be above {self.above}'
    if value > self.most:
      return f'must be at most {self.most}'
    return f'must be below {self.below}' if value >= self.below else ''


def field(default: Any, meaning: str, **bounds: Any) -> Any:
  """Returns a field of a Section.

  Args:
    default: the value of a field that is not given; MISSING for a required field.
    meaning, bounds: see Values.
  """
  if isinstance(default, dict):
    options: dict[str, Any] = {'default_factory': default.copy}
  else:
    options = {} if default is dataclasses.MISSING else {'default': default}
  return dataclasses.field(**options, metadata={'values': Values(meaning, **bounds)})


MISSING = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Section:
  """Base class of sections; each field is checked when one is made.

  A subclass is a frozen dataclass; its `check` may compare fields.
  """

  section: ClassVar[str]

  def __post_init__(self) -> None:
    for name, value in vars(self).items():
      object.__setattr__(self, name, checked(type(self), name, value, self.section))
    self.check()

  def check(self) -> None:
    """Raises ValueError, naming a field and the fix, for incompatible values."""


@functools.cache
def kinds(cls: type[Section]) -> dict[str, Any]:
  """Returns name -> type of every field of a section."""
  hints = typing.get_type_hints(cls)
  return {one.name: hints[one.name] for one in dataclasses.fields(cls)}


def values_of(cls: type[Section], name: str) -> Values:
  """Returns the values that a field accepts; without `field(...)` it accepts its whole type."""
  return cls.__dataclass_fields__[name].metadata.get('values', Values(''))


def checked(cls: type[Section], name: str, value: Any, section: str) -> Any:
  """Returns the value of a field in its type; ValueError if the field does not accept it."""
  return _checked(f'{section}.{name}'.lstrip('.'), value, kinds(cls)[name], values_of(cls, name))


def complete(cls: type[Section], given: Mapping[str, Any], section: str = '') -> dict[str, Any]:
  """Returns every given or default field of a section by name, unchecked.

  Raises:
    ValueError: it has no such field.
  """
  known = {one.name: one for one in dataclasses.fields(cls)}
  for name in given:
    if name not in known:
      raise ValueError(f'{section or cls.section}.{name} is no field{near(name, known)}')
  defaults = {name: _default(one) for name, one in known.items() if _has_default(one)}
  return {**defaults, **given}


Kind = TypeVar('Kind', bound=Section)


def resolve(
  cls: type[Kind], given: Kind | ConfigDict | Mapping[str, Any], section: str = ''
) -> Kind:
  """Returns the checked section.

  Args:
    given: some or all of its fields: a ConfigDict, a mapping, or such a section.
    section: its dotted name, if not the usual one.

  Raises:
    ValueError: an unknown or missing field, or an invalid value; one line that names the field and
      says what to write.
  """
  if isinstance(given, cls):
    return given
  section = section or cls.section
  if isinstance(given, Section) or not hasattr(given, 'keys'):
    raise ValueError(f'{section}={shown(given)} must be {KINDS[dict]}')
  fields = complete(cls, {str(name): given[name] for name in given}, section)
  for name in kinds(cls):
    if name not in fields:
      kind = fields.get('name', section)
      raise ValueError(f'{section}.{name} is missing; {kind!r} requires it')
  if section != cls.section:  # else they are checked under their name when it is made
    fields = {name: checked(cls, name, value, section) for name, value in fields.items()}
  return cls(**fields)


def _has_default(one: dataclasses.Field) -> bool:
  return (one.default, one.default_factory) != (MISSING, MISSING)


def _default(one: dataclasses.Field) -> Any:
  return one.default_factory() if callable(one.default_factory) else one.default


def _checked(where: str, value: Any, kind: Any, values: Values) -> Any:
  if isinstance(value, np.generic):
    value = value.item()
  whole, members = typing.get_origin(kind) or kind, typing.get_args(kind)
  if whole is dict:
    if not hasattr(value, 'keys'):
      raise ValueError(f'{where}={shown(value)} must be {KINDS[dict]}')
    return {str(name): resolve(members[1], value[name], f'{where}.{name}') for name in value}
  if whole is tuple:
    if not isinstance(value, tuple | list):
      raise ValueError(f'{where}={shown(value)} must be a tuple of {members[0].__name__}')
    return tuple(_checked(where, one, members[0], values) for one in value)
  if whole is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value) if abs(value) < 2**1023 else math.inf
  if not isinstance(value, whole) or (isinstance(value, bool) and whole is not bool):
    is_not = f'must be {KINDS[whole]}, not {type(value).__name__}'
    raise ValueError(f'{where}={shown(value)} {is_not}')
  fault = values.fault(value)
  if fault:
    raise ValueError(f'{where}={shown(value)} {fault}')
  return value


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
  """Returns a value in one line, shortened where it is long."""
  return ' '.join(_SHORT.repr(value).split())


def require(condition: Any, message: str) -> None:
  """Raises ValueError(message) unless `condition` holds."""
  if not condition:
    raise ValueError(message)


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
  """Raises ValueError, naming the nearest choice, unless `value` is one of `choices`."""
  fault = Values('', choices=tuple(choices)).fault(value)
  require(not fault, f'{name}={shown(value)} {fault}')


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
  """Returns the known word most similar to `word`, or None if none is similar."""
  matches = difflib.get_close_matches(str(word), list(known), 1, cutoff)
  return matches[0] if matches else None


def near(word: str, known: Iterable[str]) -> str:
  """Returns '; did you mean ...?' with the closest of the known words, or ''."""
  match = closest(word, known)
  return f'; did you mean {match!r}?' if match else ''
