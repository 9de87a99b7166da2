r"""CRT, D=5, C=1120: 157.1 M parameters, of the CRT paper's 85 M budget (crt.md, 7 and 10.1).

  python -m experiments.main --config=configs/crt_d5_c1120.py \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

Published: validation perplexity 36.38 after 100 000 steps (1.64 G tokens), on one GPU of
46 to 80 GB. Not run here yet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  return base.crt_paper(layers=5, width=1120)
