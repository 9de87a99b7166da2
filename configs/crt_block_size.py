r"""Does one recurrent layer catch up with six as sequences get longer (crt.md, 10.5)?

  python -m experiments.main --config=configs/crt_block_size.py:model=d1,T=512 \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

  model  d1   CRT, D=1, C=2048, K drawn from 2 to 5
         n6   transformer, N=6, C=1088, of the same cost per token
         n2   transformer, N=2, C=1888, too

  T     batch  steps     published validation perplexity: d1, n6 (n2 after 100 000 steps)
  64    64     100 000   65.94, - (66.91)
  256   64     300 000   33.61, 32.66 (42.99)
  512   64     200 000   30.57, 30.11 (38.23)
  1024  32     245 000   28.48, 28.46

Perplexities of different T cannot be compared, only the gaps. One GPU of 80 GB; not run here yet.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments

LENGTHS = {64: (64, 100_000), 256: (64, 300_000), 512: (64, 200_000), 1024: (32, 245_000)}
MODELS = ('d1', 'n6', 'n2')
ARGUMENTS = ('model=d1,T=512', 'model=n2,T=64')


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, model='d1', T=512)
  if given.T not in LENGTHS:
    raise ArgumentMistake(f'T={given.T} must be one of {", ".join(map(str, LENGTHS))}')
  if given.model not in MODELS:
    raise ArgumentMistake(f'model={given.model!r} must be one of {", ".join(MODELS)}')
  batch, steps = LENGTHS[given.T]
  sizes = dict(sequence_length=given.T, batch_size=batch, steps=steps)
  if given.model == 'd1':
    return base.crt_paper(layers=1, width=2048, **sizes)
  if given.model == 'n6':
    return base.transformer_paper(layers=6, width=1088, **sizes)
  return base.transformer_paper(layers=2, width=1888, **sizes | dict(steps=100_000))
