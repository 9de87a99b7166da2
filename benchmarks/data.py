"""How fast text becomes tokens, and tokens become batches.

    python -m benchmarks.data --output=benchmarks/results/data.json     # 5 minutes on two cores
    python -m benchmarks.data --files='/texts/*.txt'      # your own text, not 66 MB of Python

Each stage runs in processes of its own, so its peak memory is its own: training a BPE of 32,000
tokens; tokenising with it, beside what `tokenizers` alone takes for the same batches, and with the
`bytes` tokenizer, by one process and by two, and the latter of a quarter of the text (what memory
grows by); opening pretended data of 1,000 and 4,000 shards of 512 MiB, the first time on a host
and again; and reading batches by each sampling rule, from one corpus and from a mixture.
Targets (2 cores): 150 MB/s of bytes, a BPE as fast as `tokenizers` itself, below 600 MB whatever
the size; 5 M tokens/s read.
"""

import dataclasses
import glob
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks.results import publish

_FILES = flags.DEFINE_string('files', '', 'Glob of text; installed Python source when left out.')
_MEGABYTES = flags.DEFINE_integer('megabytes', 66, 'How much Python source.')
_LARGE = flags.DEFINE_integer('large', 1000, 'How many megabytes the `bytes` tokenizer is given.')
_SHAPES = ((64, 64), (256, 64), (1024, 16))  # T, B
_SECONDS = 2.0  # of reading, per rule and shape


def main(argv: list[str]) -> None:
  if len(argv) > 1:  # a stage, started below
    print(json.dumps(_STAGES[argv[1]](**json.loads(argv[2])) | _usage()))
    return
  with tempfile.TemporaryDirectory() as folder:
    files = _FILES.value or _python_source(Path(folder), _MEGABYTES.value * 10**6)
    settings = {'corpus': 'files', 'files': files, 'cache_dir': folder, 'separator': 'eos'}
    bpe = {'tokenizer': 'bpe', 'vocab_size': 32_000}
    saved = {'tokenizer': str(Path(folder) / 'tokenizer' / 'tokenizer.json')}
    large = _copies(files, Path(folder) / 'large', _LARGE.value * 10**6)
    everything = {'files': f'{large}/*.jsonl', 'tokenizer': 'bytes'}
    quarter = {'files': f'{large}/0*.jsonl', 'tokenizer': 'bytes'}
    result = {
      'load_before': os.getloadavg()[0],
      'train_bpe': _stage('train_bpe', settings | bpe),
      'library': _stage('library', settings | saved),
      'tokenise': _stage('prepare', settings | saved),
      'open': _stage('prepare', settings | saved),
      'tokenise_2_workers': _anew('prepare', settings | saved, workers=2),
      'bytes': _anew('prepare', settings | everything),
      'bytes_2_workers': _anew('prepare', settings | everything, workers=2),
      'bytes_of_a_quarter': _anew('prepare', settings | quarter),
      'open_1000_shards': _stage('open_huge', settings | saved, shards=1000),
      'open_4000_shards': _stage('open_huge', settings | saved, shards=4000),
      'read': _stage('read', settings | saved),
      'read_mixture': _stage('read', settings | saved | _mixture(files)),
      'load_after': os.getloadavg()[0],
    }
  alone = result['library']['megabytes_per_second']
  for name in ('tokenise', 'tokenise_2_workers'):
    result[name]['of_the_library'] = round(result[name]['megabytes_per_second'] / alone, 3)
  publish({'what': 'time and peak memory from text to tokens to batches', **result})


def _mixture(files: str) -> dict:
  sources = {name: {'files': files} for name in ('first', 'second')}
  return {'corpus': 'mixture', 'files': '', 'sources': sources, 'interleave': 'first:3, second:4'}


def _train_bpe(settings: dict) -> dict:
  from crt_jax.data import resolve, vocabularies
  from crt_jax.data.corpora import open_corpus

  config = resolve(settings)
  started = time.perf_counter()
  tokenizer = vocabularies.make(config, open_corpus(config).documents())
  seconds = time.perf_counter() - started
  tokenizer.save(Path(config.cache_dir) / 'tokenizer')
  return {'seconds': round(seconds, 2), 'vocab_size': tokenizer.vocab_size}


def _library(settings: dict) -> dict:
  """Returns what `tokenizers` alone takes from the batches, all in memory, to lists of ids."""
  import tokenizers as hf

  from crt_jax.data import resolve
  from crt_jax.data.corpora import open_corpus
  from crt_jax.data.parts import BATCH_CHARACTERS

  batches, characters = [[]], 0
  for document in open_corpus(resolve(settings)).documents():
    batches[-1].append(document.text)
    characters += len(document.text)
    if characters >= BATCH_CHARACTERS:
      batches.append([])
      characters = 0
  tokenizer = hf.Tokenizer.from_file(settings['tokenizer'])
  started = time.perf_counter()
  for batch in batches:
    for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
      encoding.ids  # noqa: B018 - makes the list
  seconds = time.perf_counter() - started
  return _speed(seconds, sum(len(text.encode()) for batch in batches for text in batch))


def _prepare(settings: dict, workers: int = 1) -> dict:
  from crt_jax import data

  started = time.perf_counter()
  dataset = data.prepare(settings, workers=workers)
  seconds = time.perf_counter() - started
  assert isinstance(dataset, data.PackedDataset)
  corpus = dataset.manifest['corpus']
  return _speed(seconds, corpus['bytes']) | {
    'documents': corpus['documents'],
    'tokens': len(dataset.train) + len(dataset.validation),
  }


def _speed(seconds: float, size: int) -> dict:
  speed = round(size / 1e6 / seconds, 2)
  return {
    'seconds': round(seconds, 2),
    'megabytes': round(size / 1e6, 2),
    'megabytes_per_second': speed,
  }


def _open_huge(settings: dict, shards: int) -> dict:
  """Opens packed data whose training tokens are so many sparse files, twice."""
  from crt_jax import data
  from crt_jax.data.manifest import read_manifest, write_manifest
  from crt_jax.data.token_files import SHARD_TOKENS, Shard, sampled_sha256, token_dtype

  dataset = data.prepare(settings)
  assert isinstance(dataset, data.PackedDataset)
  size = SHARD_TOKENS * token_dtype(dataset.tokenizer.vocab_size).itemsize
  with tempfile.TemporaryDirectory() as place:
    folder = Path(shutil.copytree(dataset.folder, Path(place) / 'huge'))
    names = [f'train-{index:05d}.bin' for index in range(shards)]
    for name in names:
      (folder / name).write_bytes(b'')
      os.truncate(folder / name, size)
    zeros = sampled_sha256(folder / names[0])
    manifest = read_manifest(folder)
    del manifest['format_version']
    manifest['splits']['train']['shards'] = [
      dataclasses.asdict(Shard(name, SHARD_TOKENS, '', zeros)) for name in names
    ]
    write_manifest(folder, manifest)
    time.sleep(3)  # until the files count as settled
    took = {}
    for when in ('first', 'again'):
      started = time.perf_counter()
      data.open_packed(folder)
      took[f'{when}_seconds'] = round(time.perf_counter() - started, 3)
  return took | {'terabytes': round(shards * size / 1e12, 2)}


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


_STAGES = {
  'train_bpe': _train_bpe,
  'library': _library,
  'prepare': _prepare,
  'open_huge': _open_huge,
  'read': _read,
}


def _stage(name: str, settings: dict, **options: int) -> dict:
  stage = json.dumps({'settings': settings, **options})
  command = [sys.executable, '-m', 'benchmarks.data', name, stage]
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _anew(name: str, settings: dict, **options: int) -> dict:
  """Runs a stage with a cache of its own, which is removed."""
  with tempfile.TemporaryDirectory(dir=settings['cache_dir']) as cache:
    return _stage(name, settings | {'cache_dir': cache}, **options)


def _copies(files: str, folder: Path, size: int) -> Path:
  """Copies text, as often as it takes and each time marked, into files of JSON lines.

  Returns the folder of the eight files.
  """
  folder.mkdir()
  texts = [Path(path).read_text('utf-8', errors='replace') for path in sorted(glob.glob(files))]
  outs = [
    (folder / f'{index // 2}{index % 2}.jsonl').open('w', encoding='utf-8') for index in range(8)
  ]
  for number in itertools.count():
    text = f'{number}\n{texts[number % len(texts)]}'
    outs[number % 8].write(json.dumps({'text': text}, ensure_ascii=False) + '\n')
    size -= len(text)
    if size < 0:
      break
  for out in outs:
    out.close()
  return folder


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
  """Returns the usage of this process and those it has ended; the memory of the largest."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return {
    'cpu_seconds': round(sum(of.ru_utime + of.ru_stime for of in used), 2),
    'peak_mb': max(of.ru_maxrss for of in used) // 1024,
  }


if __name__ == '__main__':
  from absl import app

  app.run(main)
