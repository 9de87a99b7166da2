r"""Six layers against one, sized for two cores: transformer, N=6, C=136.

Its pair is crt_d1_k10_small.py.

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.main --config=configs/transformer_n6_small.py \
    --workdir=runs/transformer_n6_small

The same text, steps and cost per token of inference as the pair (crt.md, 10.5). About ten minutes.
Not measured yet.
"""

from ml_collections import ConfigDict

from configs import base
from configs.crt_sotu import sotu


def get_config() -> ConfigDict:
  return sotu(base.transformer_model(layers=6, width=136, heads=4), steps=1000)
