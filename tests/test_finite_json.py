"""JSON without NaN and Infinity, whatever is written, and nobody who writes it another way."""

import json
import pathlib
import re

import numpy as np
import pytest

from crt_jax import json_text

ROOT = pathlib.Path(__file__).parents[1]
# Hashes, arguments of other processes and texts without numbers, which no file holds.
OTHERS = {
  'crt_jax/data/documents.py': 1,
  'crt_jax/data/manifest.py': 1,
  'crt_jax/data/token_dataset.py': 1,
  'crt_jax/data/verified.py': 1,
  'crt_jax/staging.py': 1,
  'crt_jax/json_text.py': 1,
  'crt_jax/runs/checksums.py': 1,
  'crt_jax/runs/lock.py': 1,
  'crt_jax/cluster/agreement.py': 6,
  'crt_jax/runs/workdir.py': 1,
  'benchmarks/data.py': 3,
  'experiments/jobs/results.py': 2,
  'experiments/latency/rows.py': 1,
  'crt_jax/cli/prompt_file.py': 2,
}


def test_null_stands_for_what_is_not_finite():
  value = {'a': [1.5, float('nan'), (np.float64('inf'),)], 'b': {'c': -float('inf'), 'd': 'NaN'}}
  text = json_text.dumps(value, indent=1)
  assert json.loads(text) == {'a': [1.5, None, [None]], 'b': {'c': None, 'd': 'NaN'}}
  assert 'Infinity' not in text


def test_a_type_that_json_does_not_know_is_refused():
  with pytest.raises(TypeError):
    json_text.dumps({'a': np.float32('nan')})


def test_no_file_is_written_another_way():
  found = {}
  for folder in ('crt_jax', 'experiments', 'benchmarks', 'docs'):
    for file in (ROOT / folder).rglob('*.py'):
      text = file.read_text('utf-8')
      if calls := re.findall(r'json\.dumps?\(', text):
        found[str(file.relative_to(ROOT))] = len(calls)
  assert found == OTHERS, 'use crt_jax.json_text, or say here why not'
