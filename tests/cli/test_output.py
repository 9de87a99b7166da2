"""Standard output that cannot show a character shows its number, and the program goes on."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from crt_jax.training.terminal import show_any_text

ROOT = pathlib.Path(__file__).parents[2]
# é is in latin-1; the last one stands for a byte of a file name that is no text.
TEXT = 'é 语 \udc80'
ESCAPED = {
  'ascii': rb'\xe9 \u8bed \udc80',
  'latin-1': b'\xe9' + rb' \u8bed \udc80',
  'utf-8': 'é 语 '.encode() + rb'\udc80',
}
# What each encoding comes from: asked for, or of a locale that Python does not make into UTF-8.
ENVIRONMENTS = {name: (name, {'PYTHONIOENCODING': name}) for name in ESCAPED}
ENVIRONMENTS['C'] = ('ascii', dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0'))
ENTRY = """
from crt_jax import cli
def main(argv):
  print('é 语 \\udc80')
cli.run(main)
"""


def run(words, environment, **options):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
  return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, **options)


@pytest.mark.parametrize('name', ENVIRONMENTS)
def test_an_entry_point_escapes_what_cannot_be_shown(name, tmp_path):
  encoding, environment = ENVIRONMENTS[name]
  entry = tmp_path / 'entry.py'
  entry.write_text(ENTRY, 'utf-8')
  done = run([sys.executable, entry], environment)
  assert (done.returncode, done.stdout.strip()) == (0, ESCAPED[encoding]), done.stderr


def test_so_does_what_the_library_prints(monkeypatch):
  for encoding, expected in ESCAPED.items():
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding=encoding))
    show_any_text()
    print(TEXT, end='', flush=True)
    assert raw.getvalue() == expected
  monkeypatch.setattr(sys, 'stdout', io.StringIO())
  show_any_text()


@pytest.mark.slow
def test_a_training_ends_well_and_its_files_are_utf_8(tmp_path):
  """With a prompt, and in a directory, that standard output cannot show; then an evaluation in a
  locale of ASCII."""
  path, moved = tmp_path / 'größe', tmp_path / 'run'
  command = [sys.executable, '-m', 'experiments.main']
  options = ['--config=tests/training/tiny.py', '--config.train.steps=2']
  options += ['--config.sample.prompt=é语', f'--workdir={path}']
  done = run([*command, *options], ENVIRONMENTS['ascii'][1])
  assert done.returncode == 0, done.stderr
  assert rb'\xe9\u8bed' in done.stdout and rb'gr\xf6\xdfe' in done.stdout
  sample = path / 'samples' / 'step_2.txt'
  assert sample.read_text('utf-8').startswith('é语')
  sample.unlink()
  path.rename(moved)
  done = run([*command, '--mode=eval', f'--workdir={moved}'], ENVIRONMENTS['C'][1])
  assert done.returncode == 0, done.stderr
  assert (moved / 'samples' / 'step_2.txt').read_text('utf-8').startswith('é语')
