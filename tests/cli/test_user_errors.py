"""Which exceptions are a user's mistake (one line) and which are ours (traceback)."""

import errno

import pytest

from crt_jax.cli.user_errors import Mistake, describe
from crt_jax.schema.fields import closest


def caught(code: str, module: str, files=None) -> Exception:
  """Returns the exception that `code` raises when it runs as part of `module`."""
  try:
    exec(compile(code, '<test>', 'exec'), {'__name__': module, 'open': open, 'Mistake': Mistake})
  except Exception as error:
    return error
  raise AssertionError('nothing was raised')


@pytest.mark.parametrize(
  'code, module, line',
  [
    (
      "raise ValueError('model.width=100: use 96')",
      'crt_jax.models.crt',
      'model.width=100: use 96',
    ),
    ("raise ValueError('model.width=100: use 96')", 'configs.base', 'model.width=100: use 96'),
    ("def f():\n  raise ValueError('deep')\nf()", 'crt_jax.data', 'deep'),
    (
      "try:\n  int('x')\nexcept ValueError as e:\n  raise ValueError('told') from e",
      'crt_jax',
      'told',
    ),
    ("raise OSError('workdir belongs to another run')", 'crt_jax.training', 'workdir belongs to'),
    ("raise Mistake('wrong flag')", 'anything', 'wrong flag'),
    ("open('/nowhere/at/all')", 'numpy', '/nowhere/at/all: No such file or directory'),
    (f"raise OSError({errno.ENOSPC}, 'No space left', 'f')", 'orbax', 'f: No space left'),
  ],
)
def test_a_mistake_of_the_user_is_one_line(code, module, line):
  told = describe(caught(code, module))
  assert told is not None and told.startswith(line) and '\n' not in told


@pytest.mark.parametrize(
  'code, module',
  [
    ("raise ValueError('shapes do not match')", 'jax.numpy'),  # a library's
    ("int('x')", 'crt_jax.models.crt'),  # below us, with no frame of its own
    ('a, b = (1, 2, 3)', 'crt_jax.models.crt'),
    ("raise ValueError('two\\nlines')", 'crt_jax.models.crt'),
    ('raise ValueError', 'crt_jax.models.crt'),
    ("raise TypeError('one line')", 'crt_jax.models.crt'),
    ("raise KeyError('field')", 'crt_jax.models.crt'),
    ("raise ValueError('not ours')", 'crt_jax_plugin.models'),
    (f"raise OSError({errno.ECONNRESET}, 'reset by peer')", 'crt_jax'),
    ("raise OSError('low level')", 'tensorstore'),
  ],
)
def test_a_fault_of_ours_keeps_its_traceback(code, module):
  assert describe(caught(code, module)) is None


def test_closest():
  assert closest('stps', ['steps', 'seed']) == 'steps'
  assert closest('zzz', ['steps', 'seed']) is None
