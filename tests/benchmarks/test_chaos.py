"""A minute of chaos: real runs, hit at random moments, end in the bits of quiet ones."""

import json
import subprocess
import sys

import pytest

from tests.end_to_end import runs


@pytest.mark.exhaustive  # 4 minutes of a processor; tests/end_to_end kills runs in CI
def test_a_minute_of_hits_changes_nothing(tmp_path):
  output = tmp_path / 'chaos.json'
  command = [sys.executable, '-m', 'benchmarks.chaos', '--minutes=1', f'--output={output}']
  command += ['--cases=two processes', '--lanes=1']
  done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
  record = json.loads(output.read_text())
  assert record['total_hits'] >= 2 and sum(record['runs'].values()) >= 1
  assert record['mismatches'] == record['faults'] == []
