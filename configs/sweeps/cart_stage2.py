"""The published main grid of CART: 36 runs, 4 widths x R = 6, 8, 10 x 3 seeds, P=6 (cart.md, 8.2).

  python -m experiments.sweep --config=configs/sweeps/cart_stage2.py:data=published --executor=slurm
  python -m experiments.sweep --config=configs/sweeps/cart_stage2.py:reference,data=published
  python -m experiments.sweep --config=configs/sweeps/cart_stage2.py:cpu

Do more than six loops pay? 30 500 steps of 32 x 1024 tokens. Published: not at d >= 512, by at most
1 %; wiki perplexity 41.165, 27.097, 22.850 and 20.354 at R=6 for d = 256 to 1024, means of three
seeds. 2.1 to 10.8 h a run on an RTX 3090. Not run here. `reference` adds the three runs of P=4,
R=10 at d=1024. The texts: configs/cart_base.py.

`:cpu` is 6 runs of configs/cart_cpu.py: R = 2, 4, 6, two seeds, 300 steps.
"""

from configs import cart_grid
from configs.base import Run
from crt_jax.cli.config_files import parse_arguments


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False, reference=False, data='')
  if given.cpu:
    return [
      Run(f'R{R}_s{seed}', f'configs/cart_cpu.py:R={R},seed={seed}', {'train.steps': 300})
      for R in (2, 4, 6)
      for seed in (42, 137)
    ]
  cells = [cell.config for cell in cart_grid.grid() if cell.config.endswith('stage=2')]
  cells = [cell for cell in cells if given.reference or 'P=4' not in cell]
  return [Run(cart_grid.run_name(cell), cart_grid.with_texts(cell, given.data)) for cell in cells]
