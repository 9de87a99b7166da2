"""CART, C=256: 14.4 M parameters at P=6, 18.0 M effective at R=6 (cart.md, 3.2 and 8.2).

  python -m experiments.main --config=configs/cart_d256.py --workdir=runs/cart_d256
  python -m experiments.main --config=configs/cart_d256.py:R=8,P=4,seed=137,data=published

Do more than six loops of the shared core pay at this width? Published validation perplexity after
30 500 steps of 32 x 1024 tokens (1.0 G), mean of the seeds 42, 137 and 271:

  P  R   tiny   wiki    edu
  6  6   4.343  41.165  41.52
  6  8   4.343  40.311  40.77
  6  10  4.371  40.714  41.22

Seeds differ by up to 7.5 % there, so R does not matter within the noise.
Best of stage=1 (3 000 steps of 32 x 512), P=6, R=6: tiny 12.31, wiki 184.93, edu 161.28.
Published on one RTX 3090: 2.1 h at R=6 (134 985 tokens/s). Not measured here.
What data=published needs, and what the default is: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs import cart_base

ARGUMENTS = ('', 'R=2,P=2,stage=1')


def get_config(arguments: str = '') -> ConfigDict:
  return cart_base.cart(256, arguments)
