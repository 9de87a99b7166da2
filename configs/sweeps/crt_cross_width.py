"""Layers or recurrence: CRTs and transformers of equal cost per token (crt.md, 10.1).

  python -m experiments.sweep --config=configs/sweeps/crt_cross_width.py --executor=slurm \\
      --config.data.files='/data/openwebtext/*.jsonl.gz'
  python -m experiments.sweep --config=configs/sweeps/crt_cross_width.py:budget=341 ...
  python -m experiments.sweep --config=configs/sweeps/crt_cross_width.py:cpu

85 M multiply-accumulates in the body: D = 1, 3, 5, 6, 11 against N = 2, 4, 6, 12, the last with one
head as published and with 16. budget=341: the same D against N = 2, 4, 6, 12, 24. Published
validation perplexity: 36.38 at D=5 and 37.76 at N=6 (85 M), 28.36 at D=11 and 28.68 at N=24 (341
M). One GPU of 80 GB a run; not run here.

`:cpu` is 6 runs of configs/crt_small.py of about 0.8 M: D = 1, 2, 3 against N = 2, 4, 6.
"""

from configs import crt_341m, transformer_341m
from configs.base import Run
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments

CRTS_85 = {1: 2048, 3: 1408, 5: 1120, 6: 1024, 11: 768}  # D -> C
CPU = {'D': {1: 200, 2: 160, 3: 136}, 'N': {2: 184, 4: 128, 6: 104}}  # layers -> C


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False, budget=85)
  if given.cpu:
    return [
      Run(f'{letter.lower()}{layers}', f'configs/crt_small.py:{letter}={layers},C={width}')
      for letter, widths in CPU.items()
      for layers, width in widths.items()
    ]
  if given.budget == 341:
    crts = [Run(f'd{D}', f'configs/crt_341m.py:D={D}') for D in crt_341m.WIDTHS]
    others = [Run(f'n{N}', f'configs/transformer_341m.py:N={N}') for N in transformer_341m.WIDTHS]
    return crts + others
  if given.budget != 85:
    raise ArgumentMistake(f'budget={given.budget} must be 85 or 341')
  crts = [Run(f'd{D}', f'configs/crt_d{D}_c{C}.py') for D, C in CRTS_85.items()]
  others = [Run(f'n{N}', f'configs/transformer_n{N}.py') for N in (2, 4, 6, 12)]
  return [*crts, *others, Run('n12_heads16', 'configs/transformer_n12.py:heads=16')]
