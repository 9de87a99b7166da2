"""Does one recurrent layer catch up with six as sequences get longer (crt.md, 10.5)?

  python -m experiments.sweep --config=configs/sweeps/crt_block_size.py --executor=slurm \\
      --config.data.files='/data/openwebtext/*.jsonl.gz'
  python -m experiments.sweep --config=configs/sweeps/crt_block_size.py:cpu

D=1, N=6 and N=2 of the same cost per token at T = 64, 256 and 512, the first two at 1024: 11 runs.
Published: the gap of D=1 to N=6 shrinks with T and with training, from 2.18 (T=256) to 0.02
(T=1024). Numbers: configs/crt_block_size.py. One GPU of 80 GB a run; not run here.

`:cpu` is D=1 against N=6 at T = 32, 64 and 128, 6 runs of configs/crt_small.py with 2 048 tokens a
batch.
"""

from configs.base import Run
from crt_jax.cli.config_files import parse_arguments

CPU = {'d1': 'D=1,C=200', 'n6': 'N=6,C=104'}


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False)
  if given.cpu:
    return [
      Run(f'T{T}_{name}', f'configs/crt_small.py:{model},T={T},batch={2048 // T}')
      for T in (32, 64, 128)
      for name, model in CPU.items()
    ]
  return [
    Run(f'T{T}_{model}', f'configs/crt_block_size.py:model={model},T={T}')
    for T in (64, 256, 512, 1024)
    for model in ('d1', 'n6', 'n2')
    if (T, model) != (1024, 'n2')
  ]
