"""CART against dense layers of the size that it stores, and that it uses (cart.md, 8.2)."""

from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere

LENGTHS = (175, 350, 700)  # steps; the text ends after 1 025, and dense layers may take 980
SETS = ('speeches', 'novel')
DENSE = {'stored': 'configs/dense_cpu.py:layers=4', 'effective': 'configs/dense_cpu.py:layers=6'}


def cpu() -> Design:
  arms, comparisons = [], []
  for steps in LENGTHS:
    changes = {'train.steps': steps, 'eval.depths': (), 'eval.jacobian_iterations': 0}
    changes |= {'eval.whole_tokens': 131_072}
    cart = Arm(f'cart-{steps}', 'configs/cart_cpu.py', changes)
    arms.append(cart)
    for size, config in DENSE.items():
      for budget, costs_as in (('tokens', ''), ('training FLOPs', cart.name)):
        dense = Arm(f'{size}-{steps}{"-training" if costs_as else ""}', config, changes, costs_as)
        arms.append(dense)
        comparisons += [
          Comparison(
            f'{size} - CART, {steps} steps, {budget}, {name}',
            *(dense.name, cart.name, name),
            decisive=size == 'stored' and budget == 'tokens' and steps == LENGTHS[-1],
          )
          for name in SETS
        ]
  return Design(tuple(arms), tuple(comparisons))


def published() -> Design:
  arms = (
    Arm('cart', 'configs/cart_d1024.py:R=6,P=6,data=published'),
    Arm('stored', 'configs/dense_7l_d1024.py:data=published'),
    Arm('effective', 'configs/dense_12l_d1024.py:data=published'),
  )
  comparisons = [
    Comparison(f'{size} - CART, {name}', size, 'cart', name, size == 'stored')
    for size in ('stored', 'effective')
    for name in ('tiny', 'wiki', 'edu')
  ]
  return Design(arms, tuple(comparisons))


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
  confounds=(
    'equal tokens: CART trains with its loops and costs more FLOPs than the 7 layers',
    'one length of training; the order after 300 steps of a small model was the reverse',
    'the same learning rate for all',
  ),
  rule=better_everywhere,
  designs={'cpu': cpu, 'published': published},
)
