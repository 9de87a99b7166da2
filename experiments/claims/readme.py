"""The tables near the top of README: models of equal cost."""

import pathlib
import textwrap
from collections.abc import Mapping

import numpy as np

from experiments import pages
from experiments.claims import budgets, figure, page, records, verdicts
from experiments.claims.claim import Claim

SIZE = 'cpu'
# Claim, validation set, what was trained on, what its arms are called, and comparisons in words.
TABLES = (
  (
    'layers_or_recurrence',
    '',
    'A CRT and transformers after 300 steps on the novel, the last one after 706, all with a '
    'vocabulary of 1,024:',
    {
      'novel-crt2': 'CRT, 2 layers',
      'novel-stateless2': 'its correction without recurrence',
      'novel-layers4': 'transformer, 4 layers',
      'novel-layers4-training': 'the same, as many training FLOPs as the CRT',
    },
    'In per cent of perplexity, with an interval of 95 %, the CRT differs',
    {
      'novel, D=2 - stateless, body FLOPs': 'from its correction without recurrence',
      'novel, D=2 - N=4, body FLOPs': 'from the transformer',
      'novel, D=2 - N=4, training FLOPs': 'from the transformer with as many training FLOPs',
      'sotu, D=2 - stateless, body FLOPs': 'from its correction without recurrence on another text '
      '(speeches, 600 steps, a vocabulary of 4,096)',
      'sotu, D=2 - N=4, body FLOPs': 'from the transformer there',
      'sotu, D=2 - N=4, training FLOPs': 'from the transformer with as many training FLOPs there',
    },
  ),
  (
    'cart_or_dense',
    'novel',
    'A CART and transformers after 175 steps on speeches and the novel, the third after 245, all '
    'with a vocabulary of 4,096 (so these numbers do not compare with those above). The paper '
    'trained on 2,800 times as much text and found the transformers better:',
    {
      'cart-175': 'CART',
      'stored-175': 'transformer of the size that it stores',
      'stored-175-training': 'the same, as many training FLOPs as CART',
      'effective-175': 'transformer of the size that it uses',
    },
    'In per cent of perplexity, with an interval of 95 %, the transformer of the size that CART '
    'stores differs from CART',
    {
      'stored - CART, 175 steps, tokens, novel': 'after as many steps',
      'stored - CART, 175 steps, training FLOPs, novel': 'after as many training FLOPs',
      'stored - CART, 700 steps, tokens, novel': 'after 700 steps of both',
    },
  ),
)
TITLES = {'layers_or_recurrence': 'CRT and transformers', 'cart_or_dense': 'CART and transformers'}
FIGURE = records.ROOT / 'docs' / 'figures' / 'equal_cost.png'
HEAD = ('model', 'parameters', 'FLOPs per token', 'training FLOPs', 'minutes', 'perplexity')
TEXT = """\
{tables}

![Perplexity of each seed of each model.](docs/figures/equal_cost.png)

Perplexity per token (of a CRT by its exact recurrence) on held-out text of the novel, mean and, \
in brackets, lowest and highest of {seeds} seeds; FLOPs per token without the output layer; \
minutes about, on two cores. `python -m experiments.claims \
--run=layers_or_recurrence,cart_or_dense` repeats them, with other texts, budgets and controls; \
intervals and verdicts: [docs/claims.md](docs/claims.md)."""


def text(claims: Mapping[str, Claim], path: pathlib.Path = FIGURE) -> str:
  """Returns the tables of the arms with complete seeds, and draws them at `path`."""
  parts, seeds, drawn = [], (), {}
  for name, validation, title, arms, subject, comparisons in TABLES:
    claim, scores = claims[name], records.read(claims[name], SIZE)
    design, rows, drawn[name] = claim.design(SIZE), [], {}
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
          f'{(budgets.seconds(arm, design.arms, SIZE) or 0) / 60:.0f}',
          pages.spread(np.exp(losses), '.2f'),
        ]
      )
      drawn[name][textwrap.fill(arms[arm.name], 28)] = np.exp(losses)
    estimates = {
      one.comparison.name: one
      for one in verdicts.estimates(claim, design, scores, 0.05)
      if one.count == len(design.seeds)
    }
    differences = [
      f'by {page.words(estimates[name], claim)} {words}'
      for name, words in comparisons.items()
      if name in estimates
    ]
    if rows:
      parts += [title, pages.table(HEAD, rows)]
    if differences:
      parts.append(f'{subject} {", ".join(differences)}.')
  if not parts:
    return 'The runs of this table are not there yet.'
  figure.perplexities(
    {TITLES[name]: of_table for name, of_table in drawn.items() if of_table}, path
  )
  return TEXT.format(tables=pages.paragraphs(*parts), seeds=len(seeds))
