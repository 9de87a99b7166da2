"""How this program was called."""

import os
import sys


def program() -> str:
  """Returns what was typed before the flags: `python -m experiments.main`, or `crt-train`."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  name = f'python -m {spec.name}' if spec else os.path.basename(sys.argv[0])
  return name.removesuffix('.__main__')  # of a package, which is run by its own name
