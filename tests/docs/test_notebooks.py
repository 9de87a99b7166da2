"""The code of docs/notebooks, cell after cell, with the assertions that stand in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))


def cells_of(path):
  return json.loads(path.read_text('utf-8'))['cells']


def test_they_show_what_they_gave():
  """Every notebook was executed before it was saved, without an error."""
  assert len(NOTEBOOKS) == 4
  for path in NOTEBOOKS:
    code = [cell for cell in cells_of(path) if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1)), path
    kinds = {output['output_type'] for cell in code for output in cell['outputs']}
    assert 'display_data' in kinds and 'error' not in kinds, path


def marks_of(path):
  """Two are executed in CI, which is long enough."""
  return pytest.mark.slow if path.stem in ('convert', 'passes') else pytest.mark.exhaustive


@pytest.mark.parametrize(
  'path', [pytest.param(path, marks=marks_of(path), id=path.stem) for path in NOTEBOOKS]
)
def test_they_run(path, tmp_path):
  code = '\n\n'.join(''.join(c['source']) for c in cells_of(path) if c['cell_type'] == 'code')
  (tmp_path / 'notebook.py').write_text(code)
  result = subprocess.run(
    [sys.executable, 'notebook.py'],
    cwd=tmp_path,
    env={
      **{name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'},  # they train
      'PYTHONPATH': str(ROOT),
      'MPLBACKEND': 'agg',
    },
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert result.returncode == 0, result.stderr
