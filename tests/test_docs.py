"""The pages keep up with the tree: links lead somewhere, commands name modules, flags and configs
that exist."""

import importlib.util
import pathlib
import re

import pytest

from crt_jax.cli import config_files
from experiments import sweep_files

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'BUILD.md', *sorted((ROOT / 'docs').glob('*.md'))]
by_name = lambda page: page.name  # noqa: E731


@pytest.mark.parametrize('page', PAGES, ids=by_name)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)#\s]+)[^)]*\)', page.read_text()):
    if '://' not in target:
      assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=by_name)
def test_commands_name_what_exists(page):
  text = page.read_text()
  for module in re.findall(r'python -m ((?:experiments|benchmarks|docs)[\w.]*)', text):
    assert importlib.util.find_spec(module), module
  for spec in re.findall(r'--config=(configs/[\w./]+\.py(?::[\w=,.]+)?)', text):
    (sweep_files if spec.startswith('configs/sweeps/') else config_files).load(spec)


def test_figures_are_shown():
  """A figure that no page shows is left over."""
  text = ''.join(page.read_text() for page in PAGES)
  for figure in (ROOT / 'docs').rglob('*.png'):
    assert figure.name in text, figure
