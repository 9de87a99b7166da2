"""Decode speed of a CRT (crt.md, 10.10). No runs: docs/latency.md has the measurements."""

from experiments.claims.claim import Claim, Published, better_everywhere

CLAIM = Claim(
  name='decode_speed',
  sentence='A CRT decodes 1.7 to 2.6 times as fast as the transformer of the same cost per token.',
  where='CRT, abstract and C.9',
  hypothesis='the ratio holds for one compiled program as for kernels that are launched one by one',
  published=(
    Published('tokens per second, D=1 against N=6', '919 / 351 = 2.6', 'N', 'crt.md 10.10'),
    Published('tokens per second, D=5 against N=12', '349 / 201 = 1.7', 'N', 'crt.md 10.10'),
  ),
  confounds=(
    'eager PyTorch, batch 1: nearly the ratio of the launches, D + 1 against N',
    'D=5 was timed alone',
  ),
  rule=better_everywhere,
)
