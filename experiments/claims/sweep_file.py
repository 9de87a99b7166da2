"""The runs of claims, for experiments.sweep; `python -m experiments.claims --run` gives it to it.

python -m experiments.sweep --config=experiments/claims/sweep_file.py:claims=pointer_chasing
"""

from configs.base import Run
from crt_jax.cli.config_files import parse_arguments
from experiments.claims.claim import runs
from experiments.claims.registered import CLAIMS


def get_sweep(arguments: str = '') -> list[Run]:
  """Returns the runs of claims=A+B at size=cpu, each once."""
  given = parse_arguments(arguments, claims='', size='cpu')
  found = {}
  for name in given.claims.split('+'):
    found |= {run.name: run for run in runs(CLAIMS[name], given.size).values()}
  return list(found.values())
