"""Dense baseline of CART, 12 layers, C=1024: 186.9 M parameters (cart.md, 3.2 and 8.2).

  python -m experiments.main --config=configs/dense_12l_d1024.py --workdir=runs/dense_12l_d1024
  python -m experiments.main --config=configs/dense_12l_d1024.py:seed=137,data=published

Is CART better than a dense transformer of as many effective parameters (178.8 M)?
The recipe of CART, 30 500 steps of 32 x 1024 tokens (1.0 G).
Published validation perplexity, seeds 42, 137, 271: tiny 2.592 +/- 0.003, wiki 18.32 +/- 0.05, edu
18.50 +/- 0.06; lower than CART's (P=6, R=6) by 7.3, 9.9 and 10.5 %, at 1.03 times the FLOPs of a
token.
One GPU of 24 GB; not measured here. What data=published needs: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs import cart_base

ARGUMENTS = ('',)


def get_config(arguments: str = '') -> ConfigDict:
  return cart_base.dense(12, arguments)
