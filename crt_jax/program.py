"""How this program was called, its warnings, missing packages, and which processes run."""

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path


def program() -> str:
  """Returns the command before the flags: `python -m experiments.main`, or `crt-train`."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  name = f'python -m {spec.name}' if spec else os.path.basename(sys.argv[0])
  return name.removesuffix('.__main__')  # of a package, which is run by its own name


def python() -> str:
  """Returns this interpreter as one would type it here: `.venv/bin/python`."""
  executable = Path(sys.executable)  # a link in an environment, not what it leads to
  here = Path.cwd()
  return str(executable.relative_to(here) if executable.is_relative_to(here) else executable)


def warn(message: str) -> None:
  """Prints a warning for whoever started the program."""
  print(f'warning: {message}', file=sys.stderr, flush=True)


def typed(command: str) -> str:
  """Returns a command for this shell, by this interpreter's environment if it is not activated."""
  name, _, rest = command.partition(' ')
  if name == 'python':
    return f'{python()} {rest}'
  return command if shutil.which(name) else f'{Path(python()).with_name(name)} {rest}'.rstrip()


def clone() -> Path | None:
  """Returns the clone that crt_jax runs from, None if it was installed from a wheel."""
  above = Path(__file__).parents[1]
  return above if (above / 'pyproject.toml').is_file() else None


def script(name: str) -> str:
  """Returns the command of a console script `crt-NAME` as one would type it here."""
  return typed(f'python -m experiments.{name}' if clone() else f'crt-{name}')


def install(extra: str) -> str:
  """Returns the command that installs an extra of pyproject.toml."""
  root = clone()
  if root is not None:
    place = '.' if root == Path.cwd() else root
    return f"{python()} -m pip install -e '{place}[{extra}]'"
  declared = importlib.metadata.requires('crt_jax') or ()
  asked = f'extra == "{extra}"'
  lines = (line.replace("'", '"').partition(';') for line in declared)
  needed = ' '.join(f"'{name.strip()}'" for name, _, marker in lines if asked in marker)
  return f'{python()} -m pip install {needed}'


def runs(process: int) -> bool:
  """Returns whether this host has a process of this number."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:  # the process belongs to another user
    pass
  return True
