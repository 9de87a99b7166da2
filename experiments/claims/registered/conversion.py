"""A CRT from a trained transformer (crt.md, 10.9).

A transformer of two layers is trained, then trained on in two ways: as it is, and with a correction
that begins at zero. The first gets as many steps, and as many training FLOPs, as the second; a CRT
that was one from the start gets the steps of both parts. All that goes on does so with a new
optimiser and in the same new order of the text.
"""

import functools

from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere
from experiments.claims.registered.layers_or_recurrence import GPU_TEXTS, SCORED, TEXTS

# The novel's arms are validated often, on the same windows: experiments/claims/disruption.py.
WATCHED = {'train.eval_every': 10, 'eval.during_training_batches': 10}
CPU_TEXTS = TEXTS | {'novel': TEXTS['novel'] | WATCHED}


def design(texts: dict[str, dict], shape: str) -> Design:
  transformer, crt = f'configs/crt_small.py:N=2,{shape}', f'configs/crt_small.py:D=2,{shape}'
  arms, comparisons = [], []
  for text, own in texts.items():
    changes = SCORED | own
    steps = own['train.steps']
    begun, converted = Arm(f'{text}-begun', transformer, changes), f'{text}-converted'
    arms += [
      begun,
      Arm(converted, crt, changes, begins_as=begun.name),
      Arm(f'{text}-plain', transformer, changes, begins_as=begun.name),
      Arm(f'{text}-plain-training', transformer, changes, converted, begun.name),
      Arm(f'{text}-scratch', crt, changes | {'train.steps': 2 * steps}),
    ]
    for against, title, decides in (
      ('plain', 'trained on as it is, as many steps', True),
      ('plain-training', 'trained on as it is, training FLOPs', True),
      ('scratch', 'a CRT from the start, steps of both parts', False),
      ('begun', 'the transformer that it was', False),
    ):
      name = f'{text}, converted - {title}'
      comparisons.append(Comparison(name, converted, f'{text}-{against}', decisive=decides))
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='conversion',
  sentence='A trained transformer that is converted into a CRT and trained on becomes better.',
  where='CRT, 5.7 and C.7',
  hypothesis='converted and trained on, it is better than the transformer trained on as long, at '
  'equal steps and at equal training FLOPs',
  published=(
    Published('perplexity, N=12 -> D=12, C=1024', '33.41 -> 32.21', 'N', 'crt.md 10.9'),
    Published('perplexity, N=24 -> D=24, C=1024', '29.42 -> 28.99', 'N', 'crt.md 10.9'),
  ),
  confounds=(
    'the transformer was not trained on for comparison; it would reach about 25.9 at 500 000 steps',
    'a new optimiser at a constant rate',
  ),
  rule=better_everywhere,
  designs={
    'cpu': functools.partial(design, CPU_TEXTS, 'C=160,heads=20'),
    'gpu': functools.partial(design, GPU_TEXTS, 'C=768,heads=12'),
  },
)
