"""Recurrence along the sequence, along depth, both, or neither, at one cost per token."""

from types import SimpleNamespace

from configs import both_cpu
from experiments.claims import budgets
from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere

MODELS = ('neither', 'crt', 'cart', 'both')
SETS = ('speeches', 'novel')
BODY = 1_572_864  # multiply-accumulates of the body per token, by neither at N=6, C=128
VOCABULARY = 4096


def arm(which: str, costs_as: str = '') -> Arm:
  """Returns one of the four models at the width that meets the budget."""

  def model(width: int) -> dict:
    given = SimpleNamespace(**both_cpu.SIZES | dict(which=which, C=width))
    return both_cpu.model(given) | dict(vocab_size=VOCABULARY)

  width = budgets.matched_width(model, BODY, both_cpu.HEAD, output=False)
  name = which + ('-training' if costs_as else '')
  changes = {'train.steps': 400, 'eval.jacobian_iterations': 0}
  return Arm(name, f'configs/both_cpu.py:which={which},C={width}', changes, costs_as)


def cpu() -> Design:
  arms = [arm(which) for which in MODELS]
  arms += [arm(which, costs_as='both') for which in MODELS if which != 'both']
  comparisons = [
    Comparison(f'both - {which}, {budget}, {name}', 'both', f'{which}{suffix}', name, True)
    for budget, suffix in (('tokens', ''), ('training FLOPs', '-training'))
    for which in MODELS
    if which != 'both'
    for name in SETS
  ]
  comparisons += [
    Comparison(f'{which} - neither, tokens, {name}', which, 'neither', name)
    for which in ('crt', 'cart')
    for name in SETS
  ]
  return Design(tuple(arms), tuple(comparisons), seeds=(42, 137, 271, 314, 577))


CLAIM = Claim(
  name='both_recurrences',
  sentence='A CRT whose block is a CART is better than either recurrence alone and than neither.',
  where='not published: a question of this project',
  hypothesis='both is better than crt, cart and neither on each text, at equal tokens and at equal '
  'training FLOPs',
  published=(Published('nothing', '', '', ''),),
  confounds=(
    'K passes of R loops: both trains with the most FLOPs, which the second budget removes',
    'one learning rate for all four',
    'keys and values go through a latent in the CARTs alone',
  ),
  rule=better_everywhere,
  designs={'cpu': cpu},
)
