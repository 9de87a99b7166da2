"""One corpus, tokenised by several processes that may die."""

import multiprocessing
import os
import random
import signal

import numpy as np
import pytest

from crt_jax import data, storage
from crt_jax.data import parts, tokenise
from crt_jax.data.corpora import open_corpus
from tests.data.conftest import make_text
from tests.data.test_cache import contents, names, run

# Small parts, each of which is logged when it is there. At its first one a process waits until
# {together} have begun one; in place of the {kill}th it dies.
PATCHED = """
import os, pathlib, signal, time
from crt_jax.data import corpora, parts, tokenizers
corpora.UNIT_BYTES, parts.PART_CHARACTERS, tokenizers.PIECE_CHARACTERS = 3000, 1000, 300
close, made, root = parts._NewPart.close, [], pathlib.Path({root!r})
def logged(self, is_last):
  made.append(1)
  (root / f'begun{{os.getpid()}}').touch()
  while len(list(root.glob('begun*'))) < {together}:
    time.sleep(0.01)
  if len(made) == {kill}:
    os.kill(os.getpid(), signal.SIGKILL)
  close(self, is_last)
  with (root / 'log').open('a') as file:
    print(os.getpid(), self._unit, self.number, file=file)
parts._NewPart.close = logged
"""


@pytest.fixture
def texts():
  """Documents of a few parts each, one of many, and small ones."""
  return [make_text(seed, words) for seed, words in enumerate([9, 700, 3000, *[60] * 30])]


def test_the_outcome_is_that_of_one_process_and_nothing_is_made_twice(settings, tmp_path, texts):
  config = settings(texts, separator='bos_eos', tokenizer='bpe', vocab_size=300)
  alone = contents(data.prepare({**config, 'cache_dir': str(tmp_path / 'alone')}).folder)
  kill = random.randrange(2, 12)
  first = run(config, PATCHED.format(root=str(tmp_path), kill=kill, together=1))
  first.communicate(timeout=120)
  assert first.returncode == -signal.SIGKILL, kill
  others = [
    run(config, PATCHED.format(root=str(tmp_path), kill=int(is_dying), together=4))
    for is_dying in (False, False, True)
  ]
  for process in others:
    process.communicate(timeout=120)
  assert [process.returncode for process in others] == [0, 0, -signal.SIGKILL], kill
  log = [line.split() for line in (tmp_path / 'log').read_text().splitlines()]
  assert len({pid for pid, *_ in log}) == 3  # the one that died at its first made none
  made = [tuple(place) for _, *place in log]
  assert len(made) == len(set(made)) > 20
  cache = data.resolve(config).cache_root
  dataset = data.prepare(config)
  assert contents(dataset.folder) == alone
  assert names(cache) == [dataset.folder.name, dataset.folder.name + '.lock']


def test_ids_are_cut_alike(tmp_path, monkeypatch):
  np.random.default_rng(0).integers(0, 256, 5000).astype('<u2').tofile(tmp_path / 'ids.bin')
  config = dict(corpus='tokens', files=f'{tmp_path}/ids.bin', sequence_length=16)
  alone = data.prepare({**config, 'cache_dir': str(tmp_path / 'alone')})
  monkeypatch.setattr(parts, 'PART_CHARACTERS', 300)
  monkeypatch.setattr('crt_jax.data.foreign_tokens.BLOCK_TOKENS', 100)
  cut = data.prepare({**config, 'cache_dir': str(tmp_path / 'cut')})
  assert contents(cut.folder) == contents(alone.folder)


@pytest.fixture
def unfinished(settings, tmp_path, texts):
  """(config, corpus, a folder of parts with nothing but the tokenizer)."""
  config = data.resolve(settings(texts))
  corpus = open_corpus(config)
  tokenise.tokenise(config, corpus, tmp_path / 'parts', is_over=lambda: True)
  return config, corpus, tmp_path / 'parts'


def test_a_helper_makes_all_that_is_missing(unfinished):
  config, corpus, folder = unfinished
  assert not list(folder.glob('*/*.npz'))
  arguments = (config, corpus.fingerprint, folder)
  helper = multiprocessing.get_context('spawn').Process(target=tokenise._help, args=arguments)
  helper.start()
  helper.join(120)
  assert helper.exitcode == 0 and list(folder.glob('*/*-last.npz'))


def die(*_):
  os.kill(os.getpid(), signal.SIGKILL)


def test_the_work_of_dead_workers_is_done(settings, monkeypatch, texts):
  config = settings(texts)
  monkeypatch.setattr(tokenise, '_help', die)
  dataset = data.prepare(config, workers=2)
  assert len(dataset.train) + len(dataset.validation) == sum(len(t.encode()) for t in texts)


def test_a_damaged_part_is_told_and_made_again(unfinished):
  config, corpus, folder = unfinished
  made = tokenise.tokenise(config, corpus, folder)
  [part] = made
  for file in (part.path, part.tokens_of(part.path)):
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(storage.OutOfReach, match='is removed; run the same command again'):
      [part.ids(made.dtype) for part in made]
    [again] = tokenise.tokenise(config, corpus, folder)
    assert file.read_bytes() == whole and again.tokens == part.tokens


def test_a_mistake_leaves_no_parts(settings, tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "whale"}\n' * 20 + '{"text": 1}\n')
  config = settings(files=str(tmp_path / 'a.jsonl'))
  with pytest.raises(ValueError, match='a.jsonl, line 21'):
    data.prepare(config, workers=1)
  assert not [name for name in names(data.resolve(config).cache_root) if 'parts' in name]
