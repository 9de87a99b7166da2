"""CART, C=1024: 125.1 M parameters at P=6, 178.8 M effective at R=6 (cart.md, 3.2 and 8.2).

  python -m experiments.main --config=configs/cart_d1024.py --workdir=runs/cart_d1024
  python -m experiments.main --config=configs/cart_d1024.py:R=8,P=4,seed=137,data=published
  python -m experiments.main --config=configs/cart_d1024.py:size=cpu   # the same, small

Do more than six loops of the shared core pay at this width? Published validation perplexity after
30 500 steps of 32 x 1024 tokens (1.0 G), mean of the seeds 42, 137 and 271:

  P  R   tiny   wiki    edu
  6  6   2.798  20.354  20.67
  6  8   2.808  20.402  20.79
  6  10  2.811  20.495  20.81
  4  10  2.899  21.42   21.72

Standard deviation over seeds at R=6: 0.013, 0.08, 0.14. Dense models: configs/dense_7l_d1024.py.
Best of stage=1 (3 000 steps of 32 x 512), P=6, R=8: tiny 6.037, wiki 97.73, edu 82.00.
Published on one RTX 3090: 8.6 h at R=6 (32 393 tokens/s). Not measured here.
What data=published needs, and what the default is: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs import cart_base

ARGUMENTS = ('', 'R=10,P=4,seed=137,data=published')


def get_config(arguments: str = '') -> ConfigDict:
  return cart_base.cart(1024, arguments)
