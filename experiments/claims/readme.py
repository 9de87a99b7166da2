"""The table near the top of README: models of equal cost."""

from collections.abc import Mapping

import numpy as np

from experiments import pages
from experiments.claims import budgets, records, verdicts
from experiments.claims.claim import Claim

SIZE = 'cpu'
# Claim, validation set, and what its arms are called.
ROWS = (
  (
    'layers_or_recurrence',
    '',
    {
      'novel-crt2': 'CRT, 2 layers',
      'novel-stateless2': 'its correction without recurrence',
      'novel-layers4': 'transformer, 4 layers',
      'novel-layers4-training': 'the same, as many training FLOPs as the CRT',
    },
  ),
  (
    'cart_or_dense',
    'novel',
    {
      'cart-175': 'CART',
      'stored-175': 'transformer of the size that it stores',
      'stored-175-training': 'the same, as many training FLOPs as CART',
      'effective-175': 'transformer of the size that it uses',
    },
  ),
)
HEAD = ('model', 'parameters', 'FLOPs per token', 'training FLOPs', 'minutes', 'perplexity')
TEXT = """\
{table}

Perplexity of the exact recurrence on held-out text of the novel, mean and, in brackets, lowest \
and highest of {seeds} seeds; FLOPs per token without the output layer; minutes about, on two \
cores. `python -m experiments.claims --run=layers_or_recurrence,cart_or_dense` repeats it, with \
other texts, budgets and controls; intervals and verdicts: [docs/claims.md](docs/claims.md)."""


def text(claims: Mapping[str, Claim]) -> str:
  """Returns the table of the arms with complete seeds."""
  rows, seeds = [], ()
  for name, validation, arms in ROWS:
    claim, scores = claims[name], records.read(claims[name], SIZE)
    design = claim.design(SIZE)
    by_name = {arm.name: arm for arm in design.arms}
    for arm in [by_name[name] for name in arms]:
      kept = [scores.get((arm.name, seed)) for seed in design.seeds]
      if None in kept:
        continue
      budget, seeds = budgets.of(arm, design.arms), design.seeds
      losses = [verdicts.row(record, validation)['cross_entropy'] for record in kept if record]
      rows.append(
        [
          arms[arm.name],
          f'{budget.parameters / 1e6:.2f} M',
          f'{budget.flops / 1e6:.2f} M',
          f'{budget.training_flops:.2g}',
          f'{budgets.seconds(arm, design.arms, SIZE) / 60:.0f}',
          pages.spread(np.exp(losses), '.2f'),
        ]
      )
  if not rows:
    return 'The runs of this table are not there yet.'
  return TEXT.format(table=pages.table(HEAD, rows), seeds=len(seeds))
