"""Tokenise a corpus ahead of training, for nodes without network or packages.

    python -m experiments.prepare --config=configs/crt_sotu.py
    python -m experiments.prepare --config=configs/crt_sotu.py --verify
    python -m experiments.prepare --config=configs/crt_sotu.py --write_tfds=DIR

Training with the same `config.data` finds what this wrote, in `config.data.cache_dir`
($CRT_JAX_CACHE or ~/.cache/crt_jax when that is empty). Doing it twice, or in two places at
once, does the work once.
"""

import sys
import time

from absl import flags

from experiments import cli

_CONFIG = cli.define_config()
_WRITE_TFDS = flags.DEFINE_string(
  'write_tfds',
  None,
  'Write the raw documents as a TFDS set here, tokenise nothing.',
)
_VERIFY = flags.DEFINE_bool(
  'verify', False, 'Compare every byte with its checksum; damaged data is made again.'
)


def main(argv: list[str]) -> None:
  del argv
  if _WRITE_TFDS.value:
    _write_tfds()
  else:
    _prepare()


def _write_tfds() -> None:
  from crt_jax.data.tfds_builder import write_tfds

  corpus = write_tfds(_CONFIG.value.data, _WRITE_TFDS.value)
  instead = ' --config.data.files=' if _CONFIG.value.data.files else ''
  print(f'wrote {_WRITE_TFDS.value}; read it with')
  print(f"  --config.data.corpus='{corpus}' --config.data.tfds_dir={_WRITE_TFDS.value}{instead}")


class _Progress:
  """A line on stderr every ten seconds."""

  def __init__(self):
    self.started = self.shown = time.monotonic()

  def __call__(self, done: int, total: int) -> None:
    now = time.monotonic()
    if now - self.shown < 10:
      return
    self.shown = now
    rate = done / (now - self.started)
    print(
      f'tokenised {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, '
      f'{(total - done) / rate:,.0f} s to go',
      file=sys.stderr,
    )


def _prepare() -> None:
  from crt_jax import data

  dataset = data.prepare(_CONFIG.value.data, whole=_VERIFY.value, report=_Progress())
  for packed in dataset.validation_sets.values():
    _describe(packed)
  if _CONFIG.value.data.corpus == 'mixture':
    print(f'mixture of {", ".join(dataset.sources)}: {len(dataset.train):,} tokens')


def _describe(dataset) -> None:
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
  if _VERIFY.value:
    print('  verified    every byte')


if __name__ == '__main__':
  cli.run(main)
