r"""One layer against six: CRT, D=1, C=2048, T=1024, K=10 (crt.md, 10.5).

Its pair is transformer_n6_t1024.py.

  python -m experiments.main --config=configs/crt_d1_t1024.py \
    --config.data.files='/data/openwebtext/*.jsonl.gz'
  python -m experiments.main --config=configs/crt_d1_t1024.py:k_min=2 --config.data.files=...

Published after 80 000 steps of batch 16: validation perplexity 36.38 with K fixed at 10, against
36.99 of the six layers; with K drawn from 2 to 10 it was 36.28 after 100 000, against 35.37. K=5
is another number of passes. One GPU of 80 GB; not run here yet.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('', 'k_min=2')


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, k_min=0, K=10)
  return base.crt_paper(
    layers=1,
    width=2048,
    depth=given.K,
    depth_min=given.k_min,
    sequence_length=1024,
    batch_size=16,
    steps=100_000,
  )
