"""Which part of CART does what: the seven published ablations (cart.md, 4 and 8.3).

  python -m experiments.main --config=configs/cart_ablations.py:which=unshared
  python -m experiments.main --config=configs/cart_ablations.py:which=unshared,data=published

d=1024, P=6, R=6, seed 42, the recipe of configs/cart_d1024.py, whose seed 42 is the baseline.
Published validation perplexity after 30 500 steps of 32 x 1024 tokens:

  which                            question                                     tiny   wiki   edu
  (baseline)                                                                    2.798  20.45  20.76
  unfrozen_kv    X, per-loop K,V   does it help to renew the anchor?            2.783  20.14  20.52
  one_loop       Y, R=1            does looping help at all?                    2.811  20.57  20.77
  unshared       Z, R cores        what does sharing the core cost?             2.691  19.22  19.64
  unshared_self  W, Z with self-   is it cross-attention that keeps Z behind    2.699  19.27  19.68
                 attention         a dense transformer?
  no_blend       HC                does mixing the last three states help?      2.813  20.49  21.00
  no_gate        LTI               does the gate help?                          within seed noise
  no_loop_code   LIE               does a loop have to know its number?         within seed noise

One seed each; over seeds the baseline's standard deviation is 0.013, 0.08 and 0.14. Published on
one RTX 3090, 8.5 to 9 h each. Not measured here. The texts: configs/cart_base.py.
"""

from ml_collections import ConfigDict

from configs.cart_base import cart_model, chosen, variant

VARIANTS = {
  'unfrozen_kv': cart_model(anchor='per_loop'),
  'one_loop': cart_model(loops=1),
  'unshared': cart_model(share_core=False),
  'unshared_self': cart_model(share_core=False, core='self'),
  'no_blend': cart_model(blend=False),
  'no_gate': cart_model(gate=False),
  'no_loop_code': cart_model(loop_code=False),
}
ARGUMENTS = tuple(f'which={name}' for name in VARIANTS)


def get_config(arguments: str = '') -> ConfigDict:
  given = chosen(VARIANTS, arguments)
  return variant(VARIANTS[given.which], given, 'cart_ablations')
