"""Small corpora and packed data for the tests of crt_jax.data."""

import random

import hypothesis
import pytest

from crt_jax import data
from crt_jax.data import verified

# Tests that write files have no business with a clock.
hypothesis.settings.register_profile('no deadline', deadline=None)
hypothesis.settings.load_profile('no deadline')

WORDS = (
  'whale ship sea the a of captain white — “Ahab” harpoon, boat; and, then! 1851 naïve\n'.split(' ')
)


@pytest.fixture(autouse=True)
def each_opening_compares(monkeypatch):
  """Whatever an earlier one has noted."""
  monkeypatch.setattr(verified, 'SETTLED_SECONDS', float('inf'))


def make_text(seed: int, words: int) -> str:
  draw = random.Random(seed)
  return ' '.join(draw.choices(WORDS, k=words))


@pytest.fixture(scope='session')
def documents():
  return [make_text(seed, 40) for seed in range(25)]


@pytest.fixture
def folder_of(tmp_path):
  """Writes documents as .txt files; returns the glob that matches them."""

  def write(documents, name='texts'):
    folder = tmp_path / name
    folder.mkdir()
    for index, text in enumerate(documents):
      (folder / f'{index:04d}.txt').write_text(text, 'utf-8', newline='')
    return str(folder / '*.txt')

  return write


@pytest.fixture
def settings(tmp_path, folder_of):
  """config.data over small files, with a cache of its own; keywords override."""

  def make(documents=None, **fields):
    if documents is None:
      documents = [make_text(seed, 60) for seed in range(30)]
    name = f'texts{len(list(tmp_path.glob("texts*")))}'
    return {
      'corpus': 'files',
      'files': folder_of(documents, name),
      'sequence_length': 16,
      'batch_size': 4,
      'cache_dir': str(tmp_path / 'cache'),
      **fields,
    }

  return make


@pytest.fixture(scope='session')
def packed(tmp_path_factory):
  """One packed byte data set for tests that only read; (dataset, config)."""
  folder = tmp_path_factory.mktemp('packed')
  for index in range(30):
    (folder / f'{index:02d}.txt').write_text(make_text(index, 60), 'utf-8')
  config = data.resolve(
    {
      'corpus': 'files',
      'files': str(folder / '*.txt'),
      'sequence_length': 16,
      'batch_size': 12,
      'cache_dir': str(folder / 'cache'),
    }
  )
  return data.prepare(config), config
