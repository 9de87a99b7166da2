"""Tokenise a corpus ahead of training, for nodes without network or packages.

    crt-prepare --config=configs/crt_sotu.py
    crt-prepare --config=configs/crt_sotu.py --workers=8
    crt-prepare --config=configs/crt_sotu.py --verify
    crt-prepare --config=configs/crt_sotu.py --repair
    crt-prepare --config=configs/crt_sotu.py --write_tfds=DIR

Training with the same `config.data` finds what this wrote, in `config.data.cache_dir`
($CRT_JAX_CACHE or ~/.cache/crt_jax when that is empty); a machine that has a copy of the folder
trains on it with --config.data.corpus=packed:FOLDER, without the text. Doing it twice, or in two
places at once, does the work once.

--workers=N shares the work among N processes, and so do tasks of several hosts that are given the
same command and cache; what was stopped goes on where it was. Training compares up to 256 MiB of
tokens with their checksums, and samples of more, once a host. --verify reads every byte, names the
files that are damaged, changes nothing and exits with 1; --repair makes them again and keeps the
damaged ones as NAME.damaged-N, since a running job may still read them. Damaged files of
packed:FOLDER have to be copied again, for their text is elsewhere.
"""

import contextlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from crt_jax import cli

if TYPE_CHECKING:
  from crt_jax.data import PackedDataset

_CONFIG = cli.define_config()
_WRITE_TFDS = flags.DEFINE_string(
  'write_tfds',
  None,
  'Write the raw documents as a TFDS set here, tokenise nothing.',
)
_VERIFY = flags.DEFINE_bool(
  'verify',
  False,
  'Compare every byte with its checksum and change nothing; exit code 1 if a file is damaged.',
)
_REPAIR = flags.DEFINE_bool(
  'repair', False, 'Compare every byte with its checksum; damaged data is made again.'
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes that tokenise; as many as there are cores is fastest.', lower_bound=1
)


def main(argv: list[str]) -> int | None:
  del argv
  if _VERIFY.value and _REPAIR.value:
    raise cli.Mistake('--verify changes nothing and --repair does; give one')
  if _WRITE_TFDS.value:
    return _write_tfds(_WRITE_TFDS.value)
  if _VERIFY.value and (damaged := _damaged_files()):
    print('\n'.join(f'damaged: {line}' for line in damaged))
    print('nothing was changed')
    return 1
  return _prepare()


def _damaged_files() -> list[str]:
  from crt_jax import data

  return data.damaged_files(_CONFIG.value.data)


def _write_tfds(folder: str) -> None:
  from crt_jax.data.tfds_builder import write_tfds

  corpus = write_tfds(_CONFIG.value.data, folder)
  instead = ' --config.data.files=' if _CONFIG.value.data.files else ''
  print(f'wrote {folder}; read it with')
  print(f"  --config.data.corpus='{corpus}' --config.data.tfds_dir={folder}{instead}")


def _prepare() -> None:
  from crt_jax import data
  from crt_jax.training.terminal import Stages

  with contextlib.redirect_stdout(sys.stderr), Stages() as report:
    dataset = data.prepare(_CONFIG.value.data, _REPAIR.value, report, _WORKERS.value)
  for packed in dataset.validation_sets.values():
    if isinstance(packed, data.PackedDataset):
      _describe(packed)
    else:
      print(f'{packed.summary}; nothing to prepare')
  if isinstance(dataset, data.MixedDataset):
    print(f'mixture of {", ".join(dataset.sources)}: {len(dataset.train):,} tokens')


def _describe(dataset: 'PackedDataset') -> None:
  manifest = dataset.manifest
  tokenizer, split = manifest['tokenizer'], manifest['split']
  print(f'{dataset.folder}')
  print(f'  tokenizer   {tokenizer["name"]}, {tokenizer["vocab_size"]:,} tokens')
  share = f', {split["validation_fraction"]:.0%} held out'
  print(f'  split       {split["rule"]}{"" if split["rule"] == "validation_files" else share}')
  print(f'  separator   {manifest["separator"]}')
  for name, counts in manifest['splits'].items():
    documents = '' if counts['documents'] is None else f', {counts["documents"]:,} documents'
    print(
      f'  {name:<11} {counts["tokens"]:,} tokens, {dataset.bytes_per_token(name):.3f} bytes each'
      f'{documents}'
    )
  for said in dataset.shared_text:
    print(f'  in both     {said}')
  print(f'  elsewhere   a copy of it is read with --config.data.corpus=packed:{dataset.folder}')
  if _VERIFY.value or _REPAIR.value:
    print('  verified    every byte')


def start() -> None:
  """Runs the console script `crt-prepare`; does not return."""
  cli.run(main)
