"""CONTRIBUTING.md leads to places that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_place_is_there():
  text = (ROOT / 'CONTRIBUTING.md').read_text('utf-8')
  places = re.findall(r'\]\(([^)#]+)\)', text) + re.findall(r'`(tests/[\w/.]+)`', text)
  assert len(places) > 20
  assert [place for place in places if not (ROOT / place).exists()] == []


def test_the_workflow_is_the_check_that_everyone_runs():
  assert 'bash .ci/run' in (ROOT / '.github/workflows/ci.yml').read_text('utf-8')
