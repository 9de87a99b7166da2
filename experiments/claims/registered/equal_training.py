"""What is left of the gain where the transformer gets the training compute of the CRT's passes."""

import functools

from experiments.claims.claim import Claim, better_everywhere
from experiments.claims.registered import layers_or_recurrence as headline

CLAIM = Claim(
  name='equal_training',
  sentence='At one cost per token and one cost of training, recurrence still beats layers.',
  where='CRT, limitations: training costs K times as much',
  hypothesis='D=2 is better than N=4 on each text, at equal body FLOPs and equal training FLOPs',
  published=headline.CLAIM.published[:3],
  confounds=('no published run has equal training FLOPs', 'more steps mean more epochs here'),
  rule=better_everywhere,
  designs={
    'cpu': functools.partial(headline.design, headline.CPU, 'training'),
    'gpu': functools.partial(headline.design, headline.GPU, 'training'),
    'published': functools.partial(headline.published, 'training'),
  },
  shares=headline.CLAIM.name,
)
