r"""Transformer, N=4, C=1344: 172.8 M parameters, a baseline at 85 M (crt.md, 7 and 10.1).

  python -m experiments.main --config=configs/transformer_n4.py \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

Published: validation perplexity 38.68 after 100 000 steps (1.64 G tokens), on one GPU of
46 to 80 GB. Not run here yet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  return base.transformer_paper(layers=4, width=1344)
