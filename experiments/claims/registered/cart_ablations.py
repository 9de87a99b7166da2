"""Which part of CART does what (cart.md, 8.3)."""

from configs.sweeps import cart_ablations
from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, alike

SEEDS = (42, 137, 271, 314, 577)


def cpu() -> Design:
  scored = {'eval.jacobian_iterations': 0, 'eval.whole_tokens': 131_072}
  arms = [
    Arm(name, 'configs/cart_cpu.py', changes | scored)
    for name, changes in cart_ablations.cpu().items()
  ]
  comparisons = [
    Comparison(f'{arm.name} - baseline, {name}', arm.name, 'baseline', name, arm.name in NULL)
    for arm in arms[1:]
    for name in ('speeches', 'novel')
  ]
  return Design(tuple(arms), tuple(comparisons), SEEDS)


NULL = ('no_gate', 'no_loop_code')

CLAIM = Claim(
  name='cart_ablations',
  sentence='The gate and the code of the loop are vestigial: CART does as well without them.',
  where='CART, ablations at d=1024',
  hypothesis='without the gate and without the loop code the perplexity changes by less than 0.5 %',
  published=(
    Published('wiki perplexity, baseline', '20.45', 'P', 'cart.md 8.3'),
    Published('wiki perplexity, without blending', '20.49', 'P', 'cart.md 8.3'),
    Published('wiki perplexity, unshared core', '19.22', 'P', 'cart.md 8.3'),
    Published('gate or loop code off', 'within seed noise', 'N', 'cart.md 8.3'),
  ),
  confounds=(
    'one seed each; interpretable effects are above 0.16 by the author',
    'the gate changes the gain of a loop only from about 1.9 to 2: it never contracted',
    'its value follows weight decay',
  ),
  rule=alike,
  designs={'cpu': cpu},
)
