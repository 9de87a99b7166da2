"""The command line of `crt_jax/cli/prepare.py`."""

import os
import subprocess
import sys

import pytest

CONFIG = """
from ml_collections import ConfigDict

def get_config():
  return ConfigDict({{'data': {settings!r}}})
"""


@pytest.fixture
def command(settings, tmp_path):
  """Runs `python -m experiments.prepare` on small files."""
  path = tmp_path / 'config.py'

  def run(*arguments, **fields):
    given = {**settings(), 'tokenizer': 'bytes', 'tfds_dir': '', **fields}
    if not path.exists():
      path.write_text(CONFIG.format(settings=given))
    return subprocess.run(
      [sys.executable, '-m', 'experiments.prepare', f'--config={path}', *arguments],
      capture_output=True,
      text=True,
      env={**os.environ, 'PYTHONPATH': '.'},
      timeout=120,
    )

  return run


def test_it_says_where_the_tokens_are_and_finds_them_again(command, tmp_path):
  first, again = command('--workers=2'), command('--verify')
  assert first.returncode == again.returncode == 0, first.stderr + again.stderr
  assert str(tmp_path / 'cache' / 'files-bytes-') in first.stdout
  assert 'document_hash, 10% held out' in first.stdout
  assert again.stdout.startswith(first.stdout)


def test_damage_is_told_and_repaired_when_asked(command, tmp_path):
  missing = command('--verify')
  assert missing.returncode == 2 and 'this data was never prepared' in missing.stderr
  command()
  [file] = tmp_path.glob('cache/files-bytes-*/train-00000.bin')
  raw = bytearray(file.read_bytes())
  raw[100] ^= 4
  file.write_bytes(raw)
  found = command('--verify')
  assert found.returncode == 1 and file.read_bytes() == raw
  assert found.stdout.splitlines() == [
    f'damaged: {file} has other contents than were written; --repair makes it again',
    'nothing was changed',
  ]
  repaired = command('--repair')
  assert repaired.returncode == 0 and 'verified    every byte' in repaired.stdout
  assert file.read_bytes() != raw
  [kept] = tmp_path.glob('cache/files-bytes-*.damaged-0/train-00000.bin')
  assert kept.read_bytes() == raw and str(kept.parent) in repaired.stderr


def test_of_a_mixture_it_says_each_source_and_the_whole(command, folder_of):
  texts = folder_of(['whale ' * 50, 'ship ' * 50], 'own'), folder_of(['sea ' * 50], 'held_out')
  others = folder_of(['captain ' * 50, 'harpoon ' * 50], 'others')
  sources = {
    'b': {'files': texts[0], 'validation_files': texts[1]},
    'a': {'files': others, 'max_tokens': 300},
  }
  mixture = {
    'corpus': 'mixture',
    'files': '',
    'sources': sources,
    'interleave': 'b:1, a:2',
    'chunk_tokens': 50,
  }
  said = command(**mixture)
  assert said.returncode == 0, said.stderr
  assert said.stdout.count('tokenizer') == 2 and 'split       validation_files\n' in said.stdout
  assert said.stdout.endswith('mixture of b, a: 450 tokens\n')


def test_a_tfds_set_is_written_and_read(command, tmp_path):
  written = command(f'--write_tfds={tmp_path / "sets"}')
  assert written.returncode == 0, written.stderr
  flags = written.stdout.splitlines()[-1].replace("'", '').split()
  read = command(*flags)
  assert read.returncode == 0, read.stderr
  assert '30 documents' not in read.stdout and 'tfds_raw_text_files-bytes' in read.stdout


def test_a_mistake_is_one_line_and_code_2(command):
  failed = command('--config.data.tokenizer=byte')
  assert failed.returncode == 2
  assert failed.stderr.count('\n') == 1
  assert "did you mean 'bytes'" in failed.stderr


def test_of_a_task_there_is_nothing_to_prepare(command):
  found = command(corpus='pointer_chasing:levels=2,keys=2,values=3', files='', sequence_length=26)
  assert found.returncode == 0, found.stderr
  assert found.stdout.splitlines() == [
    '2 levels of 2 keys, 3 values, drawn for every step; nothing to prepare'
  ]
