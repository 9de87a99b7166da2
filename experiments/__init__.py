"""Entry points, run as `python -m experiments.NAME --help`; a study is a folder of that name."""

import importlib.util
import os
import sys
from pathlib import Path


def _enter_environment() -> None:
  """Restarts this program under the clone's .venv if this interpreter lacks crt_jax's packages."""
  if importlib.util.find_spec('jax') and importlib.util.find_spec('absl'):
    return
  root = Path(__file__).parents[1]
  python = root / '.venv' / 'bin' / 'python'
  if not python.exists() or Path(sys.prefix) == root / '.venv':
    print(
      f'error: {sys.executable} has no jax; at the root of the clone, `make quickstart` installs '
      'all that is needed into .venv (or README.md, without make)',
      file=sys.stderr,
    )
    sys.exit(2)
  print(f'{sys.executable} has no jax; going on with {python}', file=sys.stderr)
  os.execv(python, [str(python), *sys.orig_argv[1:]])


_enter_environment()
