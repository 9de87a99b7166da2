"""Pointer chasing: one recurrent layer against depth (crt.md, 11)."""

from experiments.claims.claim import (
  CONFIRMED,
  REFUTED,
  UNDECIDED,
  UNSOLVED,
  Arm,
  Claim,
  Comparison,
  Design,
  Published,
)
from experiments.claims.verdicts import Estimate


def rule(estimates: list[Estimate]) -> str:
  """Confirmed where the recurrent layer solves more levels than every number of layers, each
  interval below 0; refuted where one number of layers solves more, its interval above 0; else
  undecided."""
  if all(one.high < 0 for one in estimates):
    return CONFIRMED
  return REFUTED if any(one.low > 0 for one in estimates) else UNDECIDED


def design(size: str, layers: tuple[int, ...], passes: tuple[int, ...]) -> Design:
  """Returns backpropagation through time against layers and against parallel passes."""
  models = {
    'bptt': 'model=bptt',
    **{f'n{N}': f'model=transformer,N={N}' for N in layers},
    **{f'k{K}': f'model=unroll,K={K}' for K in passes},
  }
  arms = [
    Arm(name, f'configs/pointer_chasing.py:{model},size={size}') for name, model in models.items()
  ]
  comparisons = [
    Comparison(f'D=1 - {name}', 'bptt', name, decisive=name.startswith('n'))
    for name in models
    if name != 'bptt'
  ]
  return Design(tuple(arms), tuple(comparisons))


def cpu() -> Design:
  return design('cpu', (1, 2, 3, 5, 8), (2, 5))


def gpu() -> Design:
  return design('e128', (1, 3, 5, 10), (5, 11))


def published() -> Design:
  return design('e256', (1, 3, 5, 10, 11), (5, 11))


CLAIM = Claim(
  name='pointer_chasing',
  sentence='One recurrent layer solves ten levels of pointer chasing; N layers solve about N.',
  where='CRT, 5.6 and proposition 1',
  hypothesis='D=1 by backpropagation through time leaves fewer levels unsolved than every N tried',
  published=(
    Published('levels that D=1 solves', 'all', 'N', 'crt.md 11.4'),
    Published('levels that N = 1, 3, 5, 10, 11 solve', '1, 3, 6, 7, 8', 'N', 'crt.md 11.4'),
    Published('levels that N=12 solves', 'all', 'N', 'crt.md 11.4'),
  ),
  confounds=(
    'fixed order and rotary angles let each lookup go by position',
    'one learning rate for all depths, one seed',
    'backpropagation through time composes one block per position and no transformer does',
    'the staircase is neither exactly N nor monotone in training',
  ),
  rule=rule,
  designs={'cpu': cpu, 'gpu': gpu, 'published': published},
  measure=UNSOLVED,
)
