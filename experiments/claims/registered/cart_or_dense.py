"""CART against dense layers of the size that it stores, and that it uses (cart.md, 8.2)."""

import functools
from typing import NamedTuple

from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere

SCORED = {'eval.depths': (), 'eval.jacobian_iterations': 0, 'eval.whole_tokens': 131_072}


class Size(NamedTuple):
  """What is trained, and for how many steps."""

  cart: str
  dense: dict[str, str]
  lengths: tuple[int, ...]
  sets: tuple[str, ...]


CPU = Size(
  'configs/cart_cpu.py',
  dict(stored='configs/dense_cpu.py:layers=4', effective='configs/dense_cpu.py:layers=6'),
  (175, 350, 700),  # the text ends after 1 025, and dense layers may take 980
  ('speeches', 'novel'),
)
GPU = Size(
  'configs/cart_d1024.py:R=6,P=6,data=published',
  dict(
    stored='configs/dense_7l_d1024.py:data=published',
    effective='configs/dense_12l_d1024.py:data=published',
  ),
  (1000, 2000, 4000),
  ('tiny', 'wiki', 'edu'),
)


def design(size: Size) -> Design:
  arms, comparisons = [], []
  for steps in size.lengths:
    changes = {'train.steps': steps} | SCORED
    cart = Arm(f'cart-{steps}', size.cart, changes)
    arms.append(cart)
    for twin, config in size.dense.items():
      for budget, costs_as in (('tokens', ''), ('training FLOPs', cart.name)):
        dense = Arm(f'{twin}-{steps}{"-training" if costs_as else ""}', config, changes, costs_as)
        arms.append(dense)
        comparisons += [
          Comparison(
            f'{twin} - CART, {steps} steps, {budget}, {name}',
            *(dense.name, cart.name, name),
            decisive=twin == 'stored' and budget == 'tokens' and steps == size.lengths[-1],
          )
          for name in size.sets
        ]
  return Design(tuple(arms), tuple(comparisons))


def published() -> Design:
  arms = [Arm('cart', GPU.cart), *(Arm(twin, config) for twin, config in GPU.dense.items())]
  comparisons = [
    Comparison(f'{twin} - CART, {name}', twin, 'cart', name, twin == 'stored')
    for twin in GPU.dense
    for name in GPU.sets
  ]
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='cart_or_dense',
  sentence='Dense layers of the size that CART stores are slightly better, of its effective size '
  'clearly.',
  where='CART, dense baselines at d=1024',
  hypothesis='dense layers of the stored size are better on each text after the longest training, '
  'at equal tokens',
  published=(
    Published('wiki perplexity, CART P=6 R=6', '20.354 +/- 0.08', 'P', 'cart.md 8.2'),
    Published('wiki perplexity, dense 7 layers', '20.13 +/- 0.06', 'P', 'cart.md 8.2'),
    Published('wiki perplexity, dense 12 layers', '18.32 +/- 0.05', 'P', 'cart.md 8.2'),
  ),
  confounds=('the same learning rate for all',),
  controls={
    'at equal tokens CART trains with its loops and costs more FLOPs than the 7 '
    'layers': 'stored - CART, [47]*00 steps, training*',
    'one length of training says little: the order after 300 steps of a small model was the '
    'reverse': 'stored - CART, [123]* steps, tokens*',
  },
  rule=better_everywhere,
  designs={
    'cpu': functools.partial(design, CPU),
    'gpu': functools.partial(design, GPU),
    'published': published,
  },
)
