"""CART, C=768: 75.3 M parameters at P=6, 104.8 M effective at R=6 (cart.md, 3.2 and 8.2).

  python -m experiments.main --config=configs/cart_d768.py --workdir=runs/cart_d768
  python -m experiments.main --config=configs/cart_d768.py:R=8,P=4,seed=137,data=published

Do more than six loops of the shared core pay at this width? Published validation perplexity after
30 500 steps of 32 x 1024 tokens (1.0 G), mean of the seeds 42, 137 and 271:

  P  R   tiny   wiki    edu
  6  6   3.010  22.850  23.15
  6  8   3.023  22.863  23.30
  6  10  3.024  22.961  23.38

Best of stage=1 (3 000 steps of 32 x 512), P=6, R=8: tiny 7.063, wiki 114.96, edu 95.40.
Published on one RTX 3090: 6.1 h at R=6 (45 556 tokens/s). Not measured here.
What data=published needs, and what the default is: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs import cart_base

ARGUMENTS = ('',)


def get_config(arguments: str = '') -> ConfigDict:
  return cart_base.cart(768, arguments)
