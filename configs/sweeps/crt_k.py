"""How many parallel passes does training need, and may their number be drawn (crt.md, 10.5)?

  python -m experiments.sweep --config=configs/sweeps/crt_k.py --executor=slurm \\
      --config.data.files='/data/openwebtext/*.jsonl.gz'
  python -m experiments.sweep --config=configs/sweeps/crt_k.py:cpu

D=1, C=2048, T=1024, batch 16, 100 000 steps: K = 2, 3, 5, 10 at every step, drawn from 2 to 5 and
from 2 to 10; and the six layers of the same cost per token. Published: 36.38 with K=10 against
36.99 after 80 000 steps, 36.28 with K drawn from 2 to 10 against 35.37 after 100 000; nothing of
the others at this batch. One GPU of 80 GB a run; not run here.

`:cpu` is 6 runs of configs/crt_small.py: K = 1, 2, 3, 5, drawn from 2 to 5, and N=6.
"""

from configs.base import Run
from crt_jax.cli.config_files import parse_arguments

FULL, SMALL = 'configs/crt_d1_t1024.py', 'configs/crt_small.py'


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False)
  if given.cpu:
    fixed = [Run(f'k{K}', f'{SMALL}:D=1,C=200,K={K},kmin=0') for K in (1, 2, 3, 5)]
    drawn = [Run('k2_5', f'{SMALL}:D=1,C=200,K=5,kmin=2')]
    return [*fixed, *drawn, Run('n6', f'{SMALL}:N=6,C=104')]
  fixed = [Run(f'k{K}', f'{FULL}:K={K}') for K in (2, 3, 5, 10)]
  drawn = [Run(f'k2_{K}', f'{FULL}:K={K},k_min=2') for K in (5, 10)]
  return [*fixed, *drawn, Run('n6', 'configs/transformer_n6_t1024.py')]
