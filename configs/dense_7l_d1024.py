"""Dense baseline of CART, 7 layers, C=1024: 122.7 M parameters (cart.md, 3.2 and 8.2).

  python -m experiments.main --config=configs/dense_7l_d1024.py --workdir=runs/dense_7l_d1024
  python -m experiments.main --config=configs/dense_7l_d1024.py:seed=137,data=published

Is CART better than a dense transformer that stores as much as it does (125.1 M)?
The recipe of CART, 30 500 steps of 32 x 1024 tokens (1.0 G).
Published validation perplexity, seeds 42, 137, 271: tiny 2.746 +/- 0.002, wiki 20.13 +/- 0.06, edu
20.26 +/- 0.04; lower than CART's (P=6, R=6) by 1.8, 1.1 and 2.0 %, at 0.60 of the FLOPs of a
token.
One GPU of 24 GB; not measured here. What data=published needs: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs import cart_base

ARGUMENTS = ('',)


def get_config(arguments: str = '') -> ConfigDict:
  return cart_base.dense(7, arguments)
