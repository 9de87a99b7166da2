"""Does a CART trained with R loops, or with R drawn at random, work with other R (cart.md 8.5)?

  python -m experiments.study --config=configs/studies/loops_at_evaluation.py --workdir=runs/loops

The small CART of configs/studies/gate.py, trained with R=4, or with R drawn from 1 .. 8 at every
step (mean 4.5); three seeds each, evaluated with 1 to 16 loops.
"""

from ml_collections import ConfigDict

from configs import base
from configs.studies import gate


def get_config() -> ConfigDict:
  config = gate.small_run()
  config.train.telemetry_every = 0
  config.eval.depths = (1, 2, 3, 4, 5, 6, 8, 12, 16)
  variants = {
    'R_4': {},
    'R_drawn_from_1_to_8': {'model': {'loops': 8, 'loops_min': 1}},
  }
  return base.study(config, variants, figure='depths')
