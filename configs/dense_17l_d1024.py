"""Dense baseline of CART, 17 layers, C=1024: 251.2 M parameters (cart.md, 3.2 and 8.2).

  python -m experiments.main --config=configs/dense_17l_d1024.py --workdir=runs/dense_17l_d1024
  python -m experiments.main --config=configs/dense_17l_d1024.py:seed=137,data=published

Is CART better than a dense transformer of the FLOPs of its costliest form (R=10, P=8)?
The recipe of CART, 30 500 steps of 32 x 1024 tokens (1.0 G).
It was planned, but no result is published: nothing to compare with.
One GPU of 24 GB; not measured here. What data=published needs: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs import cart_base

ARGUMENTS = ('',)


def get_config(arguments: str = '') -> ConfigDict:
  return cart_base.dense(17, arguments)
