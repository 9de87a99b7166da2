"""Does the gain of a CRT grow with width (crt.md, 10.4)?"""

from experiments.claims.claim import (
  CONFIRMED,
  REFUTED,
  UNDECIDED,
  Arm,
  Claim,
  Comparison,
  Design,
  Published,
)
from experiments.claims.verdicts import Estimate

WIDTHS = (64, 128, 256)
TEXT = {
  'data.corpus': 'sotu',
  'data.vocab_size': 4096,
  'eval.depths': (),
  'eval.whole_tokens': 131_072,
  'train.steps': 600,
}


def rule(estimates: list[Estimate]) -> str:
  """Confirmed where the interval of the widest pair lies below that of the narrowest (the gain is
  larger); refuted where it lies above; else undecided."""
  narrowest, widest = estimates[0], estimates[-1]
  if widest.high < narrowest.low:
    return CONFIRMED
  return REFUTED if widest.low > narrowest.high else UNDECIDED


def cpu() -> Design:
  arms, comparisons = [], []
  for width in WIDTHS:
    for letter in ('D', 'N'):
      config = f'configs/crt_small.py:{letter}=2,C={width},heads={width // 16}'
      arms.append(Arm(f'{letter.lower()}2-c{width}', config, TEXT))
    crt, other = arms[-2:]
    longer = Arm(f'{other.name}-training', other.config, TEXT, costs_as=crt.name)
    arms.append(longer)
    comparisons += [
      Comparison(f'D=2 - N=2, C={width}, equal steps', crt.name, other.name, decisive=True),
      Comparison(f'D=2 - N=2, C={width}, training FLOPs', crt.name, longer.name),
    ]
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='width_growth',
  sentence='The gain of a CRT over a transformer of the same layers grows with width.',
  where='CRT, 5.4',
  hypothesis='at equal steps and tokens the gain at C=256 is larger than at C=64',
  published=(
    Published('perplexity, N=2 -> D=2, C=256', '158.83 -> 143.57 (9.6 %)', 'P', 'crt.md 10.4'),
    Published('perplexity, N=2 -> D=2, C=512', '95.48 -> 84.69 (11.3 %)', 'P', 'crt.md 10.4'),
    Published('perplexity, N=2 -> D=2, C=1024', '72.83 -> 60.84 (16.5 %)', 'P', 'crt.md 10.4'),
    Published(
      'D=1 against N=2 at equal batch, C = 280 to 1120', '8.0, 5.1, 4.2 %', 'N', 'crt.md 10.4'
    ),
  ),
  confounds=(
    'at equal tokens the CRT took 2, 2 and 4 times as many optimiser steps',
    'the same width is not the same cost: 32 C^2 against 24 C^2',
    'tokens differ by width; one seed',
  ),
  rule=rule,
  designs={'cpu': cpu},
)
