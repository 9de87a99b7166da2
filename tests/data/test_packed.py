"""`data.corpus='packed:DIR'`: packed data as it lies, without the text that it was made from."""

import shutil

import numpy as np
import pytest

from crt_jax import data


@pytest.fixture
def moved(settings, tmp_path):
  """(the data set, where a copy of it lies, config.data of that copy); the text is gone."""
  config = settings(tokenizer='bpe', vocab_size=300, separator='eos')
  dataset = data.prepare(config)
  folder = shutil.copytree(dataset.folder, tmp_path / 'elsewhere')
  shutil.rmtree(tmp_path / 'cache')
  for texts in tmp_path.glob('texts*'):
    shutil.rmtree(texts)
  asked = dict(sequence_length=16, batch_size=4, cache_dir=str(tmp_path / 'no cache'))
  return dataset, folder, asked | {'corpus': f'packed:{folder}'}


def test_a_copy_needs_neither_the_text_nor_the_cache(moved, tmp_path):
  dataset, folder, config = moved
  found = data.prepare(config)
  assert found.folder == folder and found.identity == dataset.identity
  np.testing.assert_array_equal(found.validation[:], dataset.validation[:])
  assert data.prepare(config | dict(tokenizer='bpe', separator='eos')).identity == found.identity
  assert not (tmp_path / 'no cache').exists()
  assert data.damaged_files(config) == []


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'separator': 'bos_eos'}, "data.separator='bos_eos', but .* was made with 'eos'"),
    ({'tokenizer': 'of another text'}, "data.tokenizer='.*json', but .* was made with 'bpe'"),
    ({'validation_fraction': 0.2}, 'data.validation_fraction=0.2, but .* was made with 0.1'),
    ({'corpus': 'packed:/no/such'}, "'packed:/no/such': no such folder; name one that crt-prepare"),
    ({'corpus': 'packed:'}, "data.corpus='packed:' is unknown"),
    ({'files': 'a.txt'}, 'data.files=.* is read only where data.corpus is'),
  ],
)
def test_what_does_not_fit_is_one_line(moved, tmp_path, changes, words):
  if 'tokenizer' in changes:
    (tmp_path / 'a.txt').write_text('Call me Ishmael. ' * 50)
    text = {**moved[-1], 'corpus': 'files', 'files': f'{tmp_path}/a.txt'}
    other = data.prepare(text | {'tokenizer': 'bpe', 'vocab_size': 260})
    changes = {'tokenizer': f'{other.folder}/tokenizer/tokenizer.json'}
  with pytest.raises(ValueError, match=words) as error:
    data.prepare(moved[-1] | changes)
  assert '\n' not in str(error.value)


def test_damage_is_said_and_nothing_is_made_anew(moved):
  _, folder, config = moved
  with (folder / 'train-00000.bin').open('r+b') as file:
    file.write(b'\xff')
  before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  with pytest.raises(
    ValueError, match='packed:.*train-00000.bin has other contents.*copy it again'
  ):
    data.prepare(config)
  assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  damaged = f'{folder}/train-00000.bin has other contents than were written; copy it again'
  assert data.damaged_files(config) == [damaged]


def mixture_of(config, **sources):
  return {name: config[name] for name in ('sequence_length', 'batch_size', 'cache_dir')} | {
    'corpus': 'mixture',
    'sources': sources,
    'interleave': ', '.join(f'{name}:1' for name in sources),
    'chunk_tokens': 20,
  }


def test_a_mixture_takes_packed_sources_of_one_tokenizer(moved, tmp_path):
  _, folder, config = moved
  other = shutil.copytree(folder, tmp_path / 'other')
  (tmp_path / 'a.txt').write_text('Call me Ishmael. ' * 50)
  text = {'files': f'{tmp_path}/a.txt'}
  with pytest.raises(ValueError, match='data.sources.b has another tokenizer than data.sources.a'):
    data.prepare(mixture_of(config, a={'corpus': f'packed:{other}'}, b=text))
  shared = {'tokenizer': str(folder / 'tokenizer/tokenizer.json')}
  both = mixture_of(config, a={'corpus': f'packed:{folder}'}, b=text)
  with pytest.raises(ValueError, match='is tokenised already, and no text to train a BPE on'):
    data.prepare(both | {'tokenizer': 'bpe', 'vocab_size': 300})
  dataset = data.prepare(both | shared)
  np.testing.assert_array_equal(dataset.train[:20], dataset.sources['a'].train[:20])
