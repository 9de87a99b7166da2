r"""Six layers against one: transformer, N=6, C=1088, T=1024, batch 16 (crt.md, 10.5).

Its pair is crt_d1_t1024.py.

  python -m experiments.main --config=configs/transformer_n6_t1024.py \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

Published: validation perplexity 36.99 after 80 000 steps and 35.37 after 100 000. One GPU of
80 GB; not run here yet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  return base.transformer_paper(
    layers=6, width=1088, sequence_length=1024, batch_size=16, steps=100_000
  )
