"""CART, C=512: 41.1 M parameters at P=6, 55.5 M effective at R=6 (cart.md, 3.2 and 8.2).

  python -m experiments.main --config=configs/cart_d512.py --workdir=runs/cart_d512
  python -m experiments.main --config=configs/cart_d512.py:R=8,P=4,seed=137,data=published

Do more than six loops of the shared core pay at this width? Published validation perplexity after
30 500 steps of 32 x 1024 tokens (1.0 G), mean of the seeds 42, 137 and 271:

  P  R   tiny   wiki    edu
  6  6   3.360  27.097  27.44
  6  8   3.366  27.203  27.60
  6  10  3.367  27.378  27.55

Standard deviation over seeds: at most 0.17 (wiki).
Best of stage=1 (3 000 steps of 32 x 512), P=6, R=8: tiny 8.404, wiki 136.42, edu 114.52.
Published on one RTX 3090: 3.9 h at R=6 (71 244 tokens/s). Not measured here.
What data=published needs, and what the default is: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs import cart_base

ARGUMENTS = ('', 'R=8,stage=1')


def get_config(arguments: str = '') -> ConfigDict:
  return cart_base.cart(512, arguments)
