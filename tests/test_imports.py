"""What may import what: no TensorFlow anywhere, and packages point one way (DESIGN: the house)."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ('crt_jax', 'experiments', 'configs')

# A level may import lower levels and itself only; the packages of INDEPENDENT levels know nothing
# of each other. `crt_jax` alone is its __init__, the public face, which imports at first use.
LEVELS = (
  (
    'schema',
    'sharding',
    'placing',
    'staging',
    'storage',
    'keys',
    'json_text',
    'program',
    'rounding',
    'types',
  ),
  ('layers', 'recurrence', 'data'),
  ('models', 'crt_jax'),
  ('accounting', 'decoding', 'evaluation', 'convert'),
  ('runs', 'cluster'),
  ('training', 'loading', 'exporting'),
  ('cli',),
  ('configs',),
  ('experiments',),
)
INDEPENDENT = {1}
RANK = {package: rank for rank, packages in enumerate(LEVELS) for package in packages}
FORBIDDEN = {
  'tensorflow': 'TensorFlow is never imported',
  'torch': 'PyTorch is no dependency; benchmarks alone compare with it',
  'pickle': 'no pickle for data or weights',
  'clu.metric_writers': 'it imports TensorFlow',
  'clu.periodic_actions': 'it imports TensorFlow',
  'flax.metrics': 'it imports TensorFlow',
}

IMPORT_ALL = """
import importlib, sys
from importlib.machinery import ModuleSpec
from absl import flags

class Torch:
  # As if PyTorch were installed: nothing that is imported by default may import it.
  find_spec = staticmethod(lambda name, *_: ModuleSpec(name, Torch) if name == 'torch' else None)
  create_module = staticmethod(lambda spec: sys.exit('torch was imported'))
  exec_module = None

sys.meta_path.insert(0, Torch)
for module in sys.argv[1:]:
  before = set(flags.FLAGS)
  importlib.import_module(module)
  for name in set(flags.FLAGS) - before:  # entry points may define the same flags
    delattr(flags.FLAGS, name)
sys.exit('imported: tensorflow' if 'tensorflow' in sys.modules else 0)
"""


def sources() -> dict[str, str]:
  """Returns the text of every module of ours by its dotted name; assets are data, not modules."""
  found = {}
  for package in PACKAGES:
    for file in sorted((ROOT / package).glob('**/*.py')):
      parts = file.relative_to(ROOT).with_suffix('').parts
      if 'assets' in parts:
        continue
      found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = file.read_text('utf-8')
  return found


def imports(text: str) -> set[str]:
  """Returns every dotted name that a module imports, inside functions too."""
  names = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def package_of(name: str) -> str | None:
  """Returns which entry of LEVELS a dotted name belongs to, None for other people's modules."""
  root, _, rest = name.partition('.')
  if root not in PACKAGES:
    return None
  package = rest.partition('.')[0]
  return package if root == 'crt_jax' and package in RANK else root


def violations(modules: dict[str, str]) -> list[str]:
  """Returns a line for every import that does not point down."""
  lines = []
  for module, text in modules.items():
    package = package_of(module)
    for name in sorted(imports(text)) if module != 'crt_jax' else ():
      target = package_of(name)
      if target is None or target == package:
        continue
      down = RANK[target] < RANK[package]
      level = RANK[target] == RANK[package] and RANK[package] not in INDEPENDENT
      if not down and not level:
        lines.append(f'{module} imports {name}, which is not below it')
  return lines


def forbidden(modules: dict[str, str]) -> list[str]:
  """Returns a line for every import of a module that this project does without."""
  return [
    f'{module} imports {name}: {why}'
    for module, text in modules.items()
    for name in sorted(imports(text))
    for bad, why in FORBIDDEN.items()
    if f'{name}.'.startswith(f'{bad}.')
  ]


def test_imports_point_one_way():
  assert violations(sources()) == []


def test_every_package_has_a_level():
  packages = {
    f'crt_jax.{path.stem}' for path in (ROOT / 'crt_jax').iterdir() if path.name[0] not in '_.'
  }
  missing = {name for name in packages if package_of(name) == 'crt_jax'}
  assert not missing, f'give {missing} a place in LEVELS'


def test_nothing_forbidden_is_imported():
  assert forbidden(sources()) == []


@pytest.mark.parametrize(
  'module, text',
  [
    ('crt_jax.layers.norm', 'import crt_jax.models.crt'),
    ('crt_jax.layers.norm', 'from crt_jax import build'),
    ('crt_jax.layers.norm', 'from crt_jax.recurrence import layer_loop'),
    ('crt_jax.models.crt', 'def f():\n  from crt_jax.training import loop'),
    ('crt_jax.models.crt', 'from crt_jax import training'),
    ('crt_jax.training.loop', 'from crt_jax import cli'),
    ('crt_jax.training.loop', 'from crt_jax.cli.user_errors import Mistake'),
    ('crt_jax.cli.train', 'from experiments import sweep'),
    ('crt_jax.cli.config_files', 'from configs import base'),
    ('configs.quickstart', 'from experiments import main'),
  ],
)
def test_an_import_that_points_up_is_found(module, text):
  assert len(violations({module: text})) == 1


@pytest.mark.parametrize(
  'text', ['import tensorflow as tf', 'def f():\n  from torch import nn', 'import pickle']
)
def test_a_forbidden_import_is_found(text):
  assert len(forbidden({'crt_jax.data.corpora': text})) == 1


def import_all(modules: list[str]) -> subprocess.CompletedProcess:
  """Imports the modules in a process where importing TensorFlow would end it with code 97."""
  path = os.pathsep.join([str(ROOT / 'tests' / 'forbidden'), str(ROOT)])
  return subprocess.run(
    [sys.executable, '-c', IMPORT_ALL, *modules],
    env={**os.environ, 'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_no_module_imports_tensorflow_or_torch():
  modules = sorted(sources())
  assert len(modules) > 20
  result = import_all(modules)
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('name, code', [('tensorflow', 97), ('torch', 1)])
def test_importing_it_would_be_noticed(name, code):
  result = import_all([name])
  assert result.returncode == code
  assert f'{name} was imported' in result.stderr
