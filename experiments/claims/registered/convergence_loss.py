"""Is the convergence loss needed (crt.md, 10.7)?"""

from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, alike
from experiments.claims.registered.width_growth import TEXT

WEIGHTS = {'w0': 0.0, 'w01': 0.1, 'w05': 0.5}


def cpu() -> Design:
  small = 'configs/crt_small.py:D=1,C=200,heads=25'
  arms = [
    Arm(name, small, TEXT | {'model.convergence_weight': weight})
    for name, weight in WEIGHTS.items()
  ]
  comparisons = [
    Comparison(f'w={WEIGHTS[name]} - w=0', name, 'w0', decisive=True) for name in ('w01', 'w05')
  ]
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='convergence_loss',
  sentence='The weight of the convergence loss makes no difference.',
  where='CRT, 5.8',
  hypothesis='by the exact recurrence, weights of 0, 0.1 and 0.5 differ by less than 0.5 %',
  published=(Published('perplexity at w = 0, 0.1, C=50', '84.16, 84.20', 'N', 'crt.md 10.7'),),
  confounds=('measured with the token-blind correction at C=50', 'one seed'),
  rule=alike,
  designs={'cpu': cpu},
)
