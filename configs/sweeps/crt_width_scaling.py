"""Does a CRT gain more over a transformer the wider both are (crt.md, 10.4)? T=64.

  python -m experiments.sweep --config=configs/sweeps/crt_width_scaling.py --executor=slurm \\
      --config.data.files='/data/openwebtext/*.jsonl.gz'
  python -m experiments.sweep --config=configs/sweeps/crt_width_scaling.py:cpu

15 runs at C = 256, 512 and 1024: two layers each as published, where the CRTs took more optimiser
steps for the same tokens; the CRTs once more with the transformers' batch and steps; and one layer
against two at the same FLOPs. Numbers: configs/crt_width_scaling.py. One GPU of 80 GB a run; not
run here.

`:cpu` is the same at C = 64 and 128, 8 runs of configs/crt_small.py, 300 steps of 16 x 64 tokens or
600 of 8 x 64.
"""

from configs import crt_width_scaling
from configs.base import Run
from crt_jax.cli.config_files import parse_arguments


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False)
  if given.cpu:
    return [run for width in (64, 128) for run in cpu(width)]
  file = 'configs/crt_width_scaling.py'
  return [Run(name, f'{file}:which={name}') for name in crt_width_scaling.NAMES]


def cpu(width: int) -> list[Run]:
  """Returns the four runs of one width; heads of 64, and of 70 in a CRT of the same FLOPs."""
  heads, wider = width // 64, width // 64 * 70
  small = f'configs/crt_small.py:T=64,heads={heads}'
  return [
    Run(f'c{width}_n2', f'{small},N=2,C={width}'),
    Run(f'c{width}_d2', f'{small},D=2,C={width},batch=8,steps=600'),
    Run(f'equal_c{width}_d2', f'{small},D=2,C={width}'),
    Run(f'matched_c{wider}_d1', f'{small},D=1,C={wider}'),
  ]
