"""Builds the API reference from the docstrings, with pdoc; a warning is an error.

  .venv/bin/python -m pip install -e '.[docs]'
  python -m docs.api --output=runs/api

Then open runs/api/index.html.
"""

import pathlib
import pkgutil
import warnings

from absl import flags

from crt_jax import cli

_OUTPUT = flags.DEFINE_string('output', None, 'Folder of the pages; required.')


def main(argv: list[str]):
  import crt_jax
  from crt_jax.cli.user_errors import Mistake
  from crt_jax.program import install

  del argv
  if not _OUTPUT.value:
    raise Mistake('--output is missing, as in --output=runs/api')
  try:
    import pdoc
  except ImportError:
    raise Mistake(f'the API reference needs pdoc; {install("docs")}') from None
  found = pkgutil.iter_modules(crt_jax.__path__, 'crt_jax.')
  modules = [module.name for module in found if module.name != 'crt_jax.cli']
  for name in crt_jax.__all__:  # which are imported at their first use
    getattr(crt_jax, name)
  pdoc.render.configure(docformat='google', footer_text='crt_jax')
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    warnings.filterwarnings('ignore', '.*ArrayTree')  # a name that optax alone knows
    pdoc.pdoc('crt_jax', *modules, output_directory=pathlib.Path(_OUTPUT.value))
  print(f'written to {_OUTPUT.value}')


if __name__ == '__main__':
  cli.run(main)
