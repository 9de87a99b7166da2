"""A CRT from a trained transformer (crt.md, 10.9). No runs: no arm starts from another yet."""

from experiments.claims.claim import Claim, Published, better_everywhere

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
)
