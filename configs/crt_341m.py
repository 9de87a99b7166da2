r"""CRT of the CRT paper's 341 M budget, by its number of layers (crt.md, 7 and 10.1).

  python -m experiments.main --config=configs/crt_341m.py:D=5 \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

  D   C     parameters  published perplexity after 200 000 steps of batch 32 (1.64 G tokens)
  1   4128  605.1 M     33.40
  3   2784  519.4 M     30.28
  5   2240  484.8 M     29.29
  6   2048  466.8 M     29.04
  11  1568  444.8 M     28.36

One GPU of 80 GB; not run here yet. On several, --config.mesh.fsdp=N splits parameters and moments.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments

WIDTHS = {1: 4128, 3: 2784, 5: 2240, 6: 2048, 11: 1568}  # D -> C
ARGUMENTS = tuple(f'D={layers}' for layers in WIDTHS)


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, D=5)
  if given.D not in WIDTHS:
    raise ArgumentMistake(f'D={given.D} must be one of {", ".join(map(str, WIDTHS))}')
  return base.crt_paper(layers=given.D, width=WIDTHS[given.D], batch_size=32, steps=200_000)
