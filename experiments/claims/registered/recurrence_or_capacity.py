"""Which part of the gain is recurrence, and which the capacity of the correction."""

import functools

from experiments.claims.claim import Claim, Published, better_everywhere
from experiments.claims.registered import layers_or_recurrence as headline

CLAIM = Claim(
  name='recurrence_or_capacity',
  sentence='The gain of a CRT is that of recurrence, not of the capacity that its correction adds.',
  where='CRT, 5.8: the control without recurrence',
  hypothesis='D=2 is better than the same capacity without recurrence, in the correction and at '
  'the head, on each text at equal steps',
  published=(
    Published('perplexity, N=1 with the capacity at its head, C=50', '87.29', 'N', 'crt.md 10.7'),
    Published('perplexity, CRT D=1, C=50', '82.59', 'N', 'crt.md 10.7'),
  ),
  confounds=('measured at C=50 on Wikipedia only, one head, one seed',),
  controls={'K passes cost training': '*D=2 - [sh]*, training FLOPs'},
  rule=better_everywhere,
  designs={
    'cpu': functools.partial(headline.design, headline.CPU, 'control'),
    'gpu': functools.partial(headline.design, headline.GPU, 'control'),
  },
  shares=headline.CLAIM.name,
)
