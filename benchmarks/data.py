"""How fast text becomes tokens, and tokens become batches.

    python -m benchmarks.data --output=benchmarks/results/data.json
    python -m benchmarks.data --files='/texts/*.txt'      # your own text, not 22 MB of Python

Each stage runs in a process of its own, so its peak memory is its own: training a BPE of 8192
tokens, tokenising with it, opening the cache, and reading batches by each sampling rule, from
one corpus and from a mixture.
Targets (2 cores): 22 MB tokenised in 20 s below 1 GB; 5 M tokens/s read.
"""

import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks.results import publish

_FILES = flags.DEFINE_string('files', '', 'Glob of text; installed Python source when left out.')
_MEGABYTES = flags.DEFINE_integer('megabytes', 22, 'How much Python source.')
_SHAPES = ((64, 64), (256, 64), (1024, 16))  # T, B
_SECONDS = 2.0  # of reading, per rule and shape


def main(argv: list[str]) -> None:
  if len(argv) > 1:  # a stage, started below
    settings = json.loads(argv[2])
    print(json.dumps(_STAGES[argv[1]](settings) | _usage()))
    return
  with tempfile.TemporaryDirectory() as folder:
    files = _FILES.value or _python_source(Path(folder), _MEGABYTES.value * 10**6)
    settings = {'corpus': 'files', 'files': files, 'cache_dir': folder, 'separator': 'eos'}
    bpe = {'tokenizer': 'bpe', 'vocab_size': 8192}
    saved = {'tokenizer': str(Path(folder) / 'tokenizer' / 'tokenizer.json')}
    result = {
      'train_bpe': _stage('train_bpe', settings | bpe),
      'tokenise': _stage('prepare', settings | saved),
      'open': _stage('prepare', settings | saved),
      'tokenise_bytes': _stage('prepare', settings | {'tokenizer': 'bytes'}),
      'read': _stage('read', settings | saved),
      'read_mixture': _stage('read', settings | saved | _mixture(files)),
    }
  publish({'what': 'time and peak memory from text to tokens to batches', **result})


def _mixture(files: str) -> dict:
  sources = {name: {'files': files} for name in ('first', 'second')}
  return {'corpus': 'mixture', 'sources': sources, 'interleave': 'first:3, second:4'}


def _train_bpe(settings: dict) -> dict:
  from crt_jax.data import resolve, vocabularies
  from crt_jax.data.corpora import open_corpus

  config = resolve(settings)
  started = time.perf_counter()
  tokenizer = vocabularies.make(config, open_corpus(config).documents())
  seconds = time.perf_counter() - started
  tokenizer.save(Path(config.cache_dir) / 'tokenizer')
  return {'seconds': round(seconds, 2), 'vocab_size': tokenizer.vocab_size}


def _prepare(settings: dict) -> dict:
  from crt_jax import data

  started = time.perf_counter()
  dataset = data.prepare(settings)
  assert isinstance(dataset, data.PackedDataset)
  seconds = time.perf_counter() - started
  corpus = dataset.manifest['corpus']
  return {
    'seconds': round(seconds, 2),
    'megabytes': round(corpus['bytes'] / 1e6, 2),
    'documents': corpus['documents'],
    'tokens': len(dataset.train) + len(dataset.validation),
  }


def _read(settings: dict) -> dict:
  from crt_jax import data

  dataset, rates = data.prepare(settings), {}
  for sampling in ('shuffled', 'random_offsets', 'in_order'):
    for length, batch_size in _SHAPES:
      config = settings | {
        'sequence_length': length,
        'batch_size': batch_size,
        'sampling': sampling,
      }
      batches = data.train_batches(dataset, config, seed=0).iterator()
      next(batches)
      started, steps = time.perf_counter(), 0
      while time.perf_counter() - started < _SECONDS:
        next(batches)
        steps += 1
      rate = steps * length * batch_size / (time.perf_counter() - started)
      rates[f'{sampling} T={length} B={batch_size}'] = round(rate / 1e6, 1)
  return {'million_tokens_per_second': rates}


_STAGES = {'train_bpe': _train_bpe, 'prepare': _prepare, 'read': _read}


def _stage(name: str, settings: dict) -> dict:
  command = [sys.executable, '-m', 'benchmarks.data', name, json.dumps(settings)]
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _python_source(folder: Path, size: int) -> str:
  """Copies Python files, in order of their paths, until there is enough; returns their glob."""
  texts = folder / 'texts'
  texts.mkdir()
  roots = [Path(sysconfig.get_path(name)) for name in ('stdlib', 'purelib')]
  for index, path in enumerate(path for root in roots for path in sorted(root.rglob('*.py'))):
    raw = path.read_bytes()
    try:
      raw.decode('utf-8')
    except UnicodeDecodeError:
      continue  # a test of other encodings
    (texts / f'{index:06d}.txt').write_bytes(raw)
    size -= len(raw)
    if size < 0:
      break
  return str(texts / '*.txt')


def _usage() -> dict:
  used = resource.getrusage(resource.RUSAGE_SELF)
  cpu_seconds = round(used.ru_utime + used.ru_stime, 2)  # imports included
  return {'cpu_seconds': cpu_seconds, 'peak_mb': used.ru_maxrss // 1024}


if __name__ == '__main__':
  from absl import app

  app.run(main)
