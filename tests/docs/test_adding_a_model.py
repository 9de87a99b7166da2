"""The code of docs/adding_a_model.md, as it stands there, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import crt_jax
from crt_jax import accounting, schema
from crt_jax.cli import config_files
from crt_jax.models import registry
from crt_jax.training import ending

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'adding_a_model.md').read_text('utf-8')
MODEL = 'my_rnn:RNN'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with the files of the page, and nothing registered."""
  for name, text in re.findall(r'```python\n# (\w+\.py)\n(.*?)```', PAGE, re.DOTALL):
    (tmp_path / name).write_text(text)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  for table in (registry.MODELS, schema.MODELS):
    monkeypatch.setitem(table, MODEL, None)
    del table[MODEL]
  yield tmp_path
  for name in ('my_rnn', 'my_config'):
    sys.modules.pop(name, None)


def test_the_model_is_built_counted_and_exact(folder):
  config = config_files.load('my_config.py')
  with pytest.raises(ValueError, match=f'to import a model of your own: --allow_model={MODEL}'):
    crt_jax.build(config.model)
  registry.allow(MODEL)
  model = crt_jax.build(config.model)
  assert crt_jax.build(model.config) == model
  stored, flops = 2 * 256 * 32 + 32 * 64, 6 * (256 * 32 + 32 * 64)
  assert accounting.parameters(config.model).stored == stored
  assert accounting.model_flops(config.model, 32) == flops
  assert ending.next_commands(model, config, 'my_run').count(f' --allow_model={MODEL}') == 2
  assert ending.form(model, dict(form='parallel', depth=None)) == MODEL
  with pytest.raises(ValueError, match=f"'{MODEL}' has no parts"):
    model.parts({})


def test_a_run_never_imports_what_it_names(folder):
  with pytest.raises(ValueError, match='no_such:Model'):
    crt_jax.build(dict(name='no_such:Model'))
  with pytest.raises(ValueError, match='--allow_model'):
    crt_jax.build(dict(name=MODEL, vocab_size=8, width=8, heads=2))
  assert 'my_rnn' not in sys.modules


@pytest.mark.parametrize(
  'path, why',
  [
    ('my_rnn:Other', 'cannot be imported'),
    ('nowhere:X', 'cannot be'),
    ('json:JSONDecoder', 'no class'),
  ],
)
def test_what_is_no_model_is_refused(folder, path, why):
  with pytest.raises(ValueError, match=f"'{path}'.*{why}|'{path}' is {why}"):
    registry.allow(path)


@pytest.mark.slow
def test_it_trains_evaluates_and_writes(folder):
  [commands] = re.findall(r'```\n(crt-train .*?)```', PAGE, re.DOTALL)
  for line in commands.splitlines():
    script, *arguments = shlex.split(line)
    done = subprocess.run(
      [Path(sys.executable).with_name(script), *arguments],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert done.returncode == 0, done.stderr
  assert 'Call me' in done.stdout
  refused = subprocess.run(
    [Path(sys.executable).with_name('crt-generate'), '--workdir=my_run', '--prompt=a'],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert refused.returncode == 2 and f'--allow_model={MODEL}' in refused.stderr
