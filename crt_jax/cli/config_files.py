"""Config files: find, load, read their arguments, list their fields.

A config file defines `get_config()`, which returns a ConfigDict, and may take arguments:
`--config=configs/cart_d1024.py:R=8,P=4` calls `get_config('R=8,P=4')`.
"""

import ast
import contextlib
import inspect
import os
import re
import sys
import types
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from crt_jax.cli.user_errors import Mistake, did_you_mean
from crt_jax.program import clone
from crt_jax.schema.fields import KINDS, closest

TRUTH = {'true': True, '1': True, 'false': False, '0': False}


class ArgumentMistake(ValueError):
  """A wrong argument after the colon of `--config=FILE:ARGUMENTS`."""


def parse_arguments(arguments: str, /, **defaults: Any) -> types.SimpleNamespace:
  """Reads `R=8,P=4,small` for a config file, with the types of the defaults.

  Args:
    arguments: what stands after the colon; '' for none. A bool may be given by its name alone.
    **defaults: every known argument with its default: bool, int, float or str.

  Returns:
    A namespace with one attribute per default.

  Raises:
    ValueError: an unknown, repeated or ill-typed argument, in one line.
  """
  values, given = dict(defaults), set()
  for item in filter(None, (part.strip() for part in arguments.split(','))):
    name, equals, text = (part.strip() for part in item.partition('='))
    if name not in defaults:
      known = f'known: {", ".join(defaults)}' if defaults else 'this config takes none'
      hint = did_you_mean(closest(name, defaults))
      raise ArgumentMistake(f'unknown config argument {name!r} ({known}){hint}')
    if name in given:
      raise ArgumentMistake(f'config argument {name!r} is given twice')
    given.add(name)
    kind = type(defaults[name])
    try:
      if kind is bool:
        values[name] = TRUTH[text.lower()] if equals else True
      else:
        values[name] = kind(text) if equals else kind(None)
    except (ValueError, TypeError, KeyError):
      raise ArgumentMistake(
        f'config argument {item!r}: expected {KINDS[kind]}, as in {name}={defaults[name]}'
      ) from None
  return types.SimpleNamespace(**values)


def load(spec: str) -> ml_collections.ConfigDict:
  """Runs `get_config` of `FILE[:ARGUMENTS]`.

  Returns:
    The config, locked: no field can be added.

  Raises:
    Mistake: no such file, an error in it (with file and line), or wrong arguments.
  """
  config = call(spec, 'get_config')
  if not isinstance(config, ml_collections.ConfigDict):
    path = spec.partition(':')[0]
    raise Mistake(f'{path}: get_config() returned {type(config).__name__}, not a ConfigDict')
  return config.lock()


def call(spec: str, function: str) -> Any:
  """Returns the result of `get_config` or `get_sweep` of `FILE[:ARGUMENTS]`.

  Raises:
    Mistake: no such file or function, an error in it (with file and line), or wrong arguments.
  """
  path, colon, arguments = spec.partition(':')
  file = find(path)
  try:
    with _neighbours_first(file):
      module = _execute(file)
      wanted = getattr(module, function, None)
      if not callable(wanted):
        raise Mistake(f'{path} {_is_no(function, module)}')
      if colon and not inspect.signature(wanted).parameters:
        raise Mistake(f'{path} takes no arguments: leave out {colon + arguments!r}')
      return wanted(arguments) if colon else wanted()
  except Mistake:
    raise
  except ArgumentMistake as error:
    raise Mistake(f'--config={spec}: {error}') from error
  except Exception as error:
    raise Mistake(_locate(error, file)) from error


def _is_no(function: str, module: types.ModuleType) -> str:
  """Returns the message for a file without the function: what it is, and what to do with it."""
  kind = function.removeprefix('get_')
  other = {'get_config': 'get_sweep', 'get_sweep': 'get_config'}.get(function, '')
  hint = ''
  if callable(getattr(module, other, None)):
    entry = {'get_config': 'main', 'get_sweep': 'sweep'}[other]
    hint = f'; it is for python -m experiments.{entry}'
  return f'is no {kind}: it defines no function {function}(){hint}'


def find(path: str) -> Path:
  """Returns the file, as given or in the clone that crt_jax runs from; Mistake if there is none."""
  for candidate in (root / path for root in _roots()):
    if path and candidate.is_file():
      return candidate
  files = list(available())
  names = {file: file for file in files}
  names |= {str(Path(file).with_suffix('')): file for file in files}
  names |= {Path(file).name: file for file in files} | {Path(file).stem: file for file in files}
  match = closest(path, names)
  if match or not files:
    hint = did_you_mean(names.get(match or ''))
  else:
    hint = f'; there are {", ".join(files[:6])}{", ..." if len(files) > 6 else ""}'
  raise Mistake(f'no config file {path!r}{hint}')


def available(programs: Container[str] = ()) -> dict[str, str]:
  """Returns the config files of `configs/` with the first line of their docstrings.

  Args:
    programs: names of one, as `crt-train`; leaves out the files whose docstring shows commands of
      others only.
  """
  found = {}
  for root in _roots():
    for file in sorted((root / 'configs').glob('**/*.py')):
      try:
        tree = ast.parse(file.read_text(encoding='utf-8'))
      except (OSError, ValueError, SyntaxError):
        continue  # its error is shown when the file is asked for by name
      names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
      if names & {'get_config', 'get_sweep'}:
        text = ast.get_docstring(tree) or ''
        commands = re.findall(r'python -m [\w.]+|\bcrt-[a-z]+', text)
        if not programs or not commands or any(command in programs for command in commands):
          found.setdefault(str(file.relative_to(root)), text.partition('\n')[0])
  return found


def name(spec: str) -> str:
  """Returns the config's name, `cart_d1024` or `cart_d1024:R=8,P=4` as `cart_d1024-R=8,P=4`."""
  path, _, arguments = spec.partition(':')
  safe = ''.join(c if c.isalnum() or c in '=,._+-' else '_' for c in arguments)
  return Path(path).stem + (f'-{safe}' if safe else '')


def fields(config: ml_collections.ConfigDict, prefix: str = '') -> dict[str, tuple[type, Any]]:
  """Returns every leaf as `{'train.steps': (int, 2000), ...}`; an unset placeholder is None."""
  found = {}
  for key, value in config.items(preserve_field_references=True):
    if isinstance(value, ml_collections.ConfigDict):
      found |= fields(value, f'{prefix}{key}.')
      continue
    try:
      resolved = value.get() if isinstance(value, ml_collections.FieldReference) else value
    except ml_collections.config_dict.RequiredValueError:
      resolved = None
    found[prefix + key] = (config.get_type(key), resolved)
  return found


def closest_field(wrong: str, known: dict[str, Any]) -> str | None:
  """Returns the known dotted field nearest to a wrong one, or None.

  First the same last name in another section, then a similar one in the same section, then, where
  there is no such section, a similar path or last name anywhere.
  """
  section, _, last = wrong.rpartition('.')
  same = [field for field in known if _split(field)[1] == last]
  if same:
    return closest(wrong, same, cutoff=0.0)
  siblings = [field for field in known if _split(field)[0] == section]
  anywhere = [] if section and siblings else known
  for fields_there in (siblings, anywhere):
    lasts = {_split(field)[1]: field for field in fields_there}
    match = closest(last, lasts)
    if match:
      return lasts[match]
  return closest(wrong, anywhere, cutoff=0.7)


def _split(field: str) -> tuple[str, str]:
  """Returns the section and the last name of a dotted field."""
  section, _, last = field.rpartition('.')
  return section, last


def _roots() -> tuple[Path, ...]:
  """Returns the folders that a config path may start from: here, and the clone's root."""
  above = clone()
  return (Path(),) if above is None else (Path(), above)


@contextlib.contextmanager
def _neighbours_first(file: Path) -> Iterator[None]:
  """Lets a config file import modules beside it or beside its package, before those from here.

  So `from configs import base` means the `configs` that belongs to the file.
  """
  folder = file.resolve().parent
  while (folder / '__init__.py').exists():
    folder = folder.parent
  before = sys.path[:]
  sys.path[:0] = [str(folder), os.getcwd()]
  try:
    yield
  finally:
    sys.path[:] = before


def _execute(file: Path) -> types.ModuleType:
  """Runs a config file from its text; a cached .pyc could be a second old."""
  module = types.ModuleType(f'config_file_{file.stem}')
  module.__file__ = str(file)
  sys.modules[module.__name__] = module  # dataclasses look themselves up there
  exec(compile(file.read_text(encoding='utf-8'), str(file), 'exec'), module.__dict__)
  return module


def _locate(error: Exception, file: Path) -> str:
  """Returns 'FILE:LINE: message' for an error raised while `file` (or its neighbours) ran."""
  where = str(file)
  if isinstance(error, SyntaxError) and error.filename:
    return f'{error.filename}:{error.lineno}: {error.msg}'
  traceback = error.__traceback__
  while traceback is not None:
    code = traceback.tb_frame.f_code
    if Path(code.co_filename).resolve().is_relative_to(file.parent.resolve()):
      where = f'{code.co_filename}:{traceback.tb_lineno}'
    traceback = traceback.tb_next
  what = ' '.join(str(error).split())
  return f'{where}: {type(error).__name__}: {what}'
