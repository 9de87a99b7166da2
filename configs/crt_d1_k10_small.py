r"""One layer against six, sized for two cores: CRT, D=1, C=256, T=256, K=10 fixed.

Its pair is transformer_n6_small.py.

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.main --config=configs/crt_d1_k10_small.py --workdir=runs/crt_d1_k10_small
  python -m experiments.main --config=configs/crt_d1_k10_small.py:k_min=2 \
    --workdir=runs/crt_d1_k2_10_small

The paper's pair (crt.md, 10.5) at an eighth of the width: the bodies cost the same per token, 1.31
M against 1.33 M multiply-accumulates. About an hour. Published for the full size: the single layer
is ahead with K fixed and behind with K drawn from 2 to 10. Not measured here yet.
"""

from ml_collections import ConfigDict

from configs import base
from configs.crt_sotu import sotu
from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('', 'k_min=2')


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, k_min=0)
  model = base.crt_model(layers=1, width=256, heads=4, depth=10, depth_min=given.k_min)
  return sotu(model, steps=1000)
