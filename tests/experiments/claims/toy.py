"""A claim of three tiny arms, and made-up records of its runs."""

from experiments import sweep_files
from experiments.claims.claim import (
  NATS,
  Arm,
  Claim,
  Comparison,
  Design,
  Published,
  better_everywhere,
  runs,
)

SMALL = 'configs/crt_small.py'
SEEDS = (1, 2, 3)


def design() -> Design:
  arms = (
    Arm('crt', f'{SMALL}:D=1,C=32', {'train.steps': 10}),
    Arm('layers', f'{SMALL}:N=2,C=32', {'train.steps': 10}),
    Arm('layers-training', f'{SMALL}:N=2,C=32', costs_as='crt'),
  )
  comparisons = (
    Comparison('crt - layers', 'crt', 'layers', decisive=True),
    Comparison('crt - layers, training FLOPs', 'crt', 'layers-training'),
  )
  return Design(arms, comparisons, SEEDS)


def claim(name: str = 'toy', rule=better_everywhere, measure: str = NATS, **more) -> Claim:
  return Claim(
    name=name,
    sentence='A toy is better.',
    where='nowhere',
    hypothesis='crt is better than layers',
    published=(Published('perplexity', '3', 'N', 'crt.md 0'),),
    confounds=('it is a toy',),
    rule=rule,
    designs={'cpu': design},
    measure=measure,
    **more,
  )


def record(loss: float, flags: list[str] = (), **more) -> dict:
  """Of a CRT: the exact recurrence counts, not the parallel passes."""
  row = {'set': 'novel', 'depth': None, 'targets': 250, 'batch_tokens': 100}
  row |= {'form': 'sequential', 'is_inference_metric': True, 'cross_entropy': loss}
  row |= {'means': [loss - 0.1, loss + 0.1, loss]} | more
  other = row | {'form': 'parallel', 'depth': 1, 'is_inference_metric': False, 'cross_entropy': 9.0}
  origin = {'device': 'a processor', 'at': '2026-11-27'}
  kept = {'flags': list(flags), 'training_seconds': 60.0, 'origin': origin}
  return kept | {'results': [other, row]}


def records(of: Claim, losses: dict[str, list[float]]) -> dict:
  """Name of a run -> record, of each arm by seed."""
  named = runs(of, 'cpu')
  return {
    named[arm, seed].name: record(loss, sweep_files.flags(named[arm, seed], {}))
    for arm, by_seed in losses.items()
    for seed, loss in zip(SEEDS, by_seed, strict=False)
  }
