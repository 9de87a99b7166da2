"""The command line: flags, config files, help, mistakes of users, and the console scripts.

from crt_jax import cli

_CONFIG = cli.define_config()     # --config=configs/x.py:R=8  --config.train.steps=50
_WORKDIR = cli.define_workdir()   # --workdir=DIR, runs/<config name> when left out

def main(argv):
  from crt_jax.training import loop   # heavy imports in here: a typo is answered at once
  return loop.train(_CONFIG.value, _WORKDIR.value)   # None or 0, or cli.PREEMPTED

if __name__ == '__main__':
  cli.run(main)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from crt_jax.cli.entry import (
    DONE,
    INTERRUPTED,
    PREEMPTED,
    USER_MISTAKE,
    Mistake,
    define_config,
    define_workdir,
    parse_arguments,
    refuse_overrides,
    require_config,
    run,
    typed_config,
  )

__all__ = [
  'DONE',
  'INTERRUPTED',
  'PREEMPTED',
  'USER_MISTAKE',
  'Mistake',
  'define_config',
  'define_workdir',
  'parse_arguments',
  'refuse_overrides',
  'require_config',
  'run',
  'typed_config',
]


def __getattr__(name: str):
  """Imports absl at the first use, so that a program answers signals before that."""
  if name in __all__:
    from crt_jax.cli import entry

    return getattr(entry, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
