r"""CRT, D=3, C=1408: 177.4 M parameters, of the CRT paper's 85 M budget (crt.md, 7 and 10.1).

  python -m experiments.main --config=configs/crt_d3_c1408.py \
    --config.data.files='/data/openwebtext/*.jsonl.gz'

Published: validation perplexity 37.26 after 100 000 steps (1.64 G tokens), on one GPU of
46 to 80 GB. Not run here yet.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  return base.crt_paper(layers=3, width=1408)
