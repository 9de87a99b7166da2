"""How many parallel passes training needs, and whether their number may be drawn (crt.md, 10.5)."""

from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, alike
from experiments.claims.registered.width_growth import TEXT


def cpu() -> Design:
  small = 'configs/crt_small.py:D=1,C=200,heads=25'
  arms = [Arm(f'k{K}', f'{small},K={K},kmin=0', TEXT) for K in (2, 3, 5)]
  arms.append(Arm('k2_5', f'{small},K=5,kmin=2', TEXT))
  comparisons = [
    Comparison('K drawn from 2 to 5 - K=5', 'k2_5', 'k5', decisive=True),
    Comparison('K=2 - K=5', 'k2', 'k5'),
    Comparison('K=3 - K=5', 'k3', 'k5'),
  ]
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='parallel_passes',
  sentence='Training with a drawn number of passes reaches what a fixed number reaches.',
  where='CRT, 5.5, C.3 and C.4',
  hypothesis='by the exact recurrence, K drawn from 2 to 5 and K=5 differ by less than 0.5 %',
  published=(
    Published(
      'perplexity of D=1, T=1024, K=10 at every step, 80 000 steps', '36.38', 'P', 'crt.md 10.5'
    ),
    Published('the same with K drawn from 2 to 10, 100 000 steps', '36.28', 'N', 'crt.md 10.5'),
    Published('D=8, sequential: K=5, K=2', '39.10, 40.59', 'N', 'crt.md 10.6'),
  ),
  confounds=(
    'paper and notes disagree: the notes say that a fixed K matters',
    'runs of different length are compared',
    'the sequential penalty of early runs came from position 0',
  ),
  rule=alike,
  designs={'cpu': cpu},
)
