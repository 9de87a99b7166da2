r"""Transformer of the CRT paper's 341 M budget, by its number of layers (crt.md, 7 and 10.1).

  python -m experiments.main --config=configs/transformer_341m.py:N=12 \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

  N   C     parameters  published perplexity after 200 000 steps of batch 32 (1.64 G tokens)
  2   3776  584.0 M     36.10
  4   2656  508.8 M     31.95
  6   2176  480.4 M     30.35
  12  1536  438.3 M     29.01
  24  1088  410.9 M     28.68

One GPU of 80 GB; not run here yet.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments

WIDTHS = {2: 3776, 4: 2656, 6: 2176, 12: 1536, 24: 1088}  # N -> C
ARGUMENTS = tuple(f'N={layers}' for layers in WIDTHS)


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, N=12)
  if given.N not in WIDTHS:
    raise ArgumentMistake(f'N={given.N} must be one of {", ".join(map(str, WIDTHS))}')
  return base.transformer_paper(layers=given.N, width=WIDTHS[given.N], batch_size=32, steps=200_000)
