"""The published screen of CART: 64 runs, 4 widths x 4 numbers of loops x 4 preludes (cart.md, 8.1).

  python -m experiments.sweep --config=configs/sweeps/cart_stage1.py:data=published --executor=slurm
  python -m experiments.sweep --config=configs/sweeps/cart_stage1.py:cpu --parallel=1

What does an extra prelude layer buy, and what an extra loop? 3 000 steps of 32 x 512 tokens, seed
42, in the published order. Published: more prelude is better almost without exception, more loops
only at d >= 512; best wiki perplexity 184.93, 136.42, 114.96 and 97.73 for d = 256 to 1024 (P=6). A
run took 14 to 124 minutes of an RTX 3050. Not run here. The texts: configs/cart_base.py.

`:cpu` is 8 runs of configs/cart_cpu.py, d = 64 and 128, R = 2 and 4, P = 2 and 3, 300 steps.
"""

from configs import cart_grid
from configs.base import Run
from crt_jax.cli.config_files import parse_arguments


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False, data='')
  if given.cpu:
    return [cpu(d, R, P) for d in (64, 128) for R in (2, 4) for P in (2, 3)]
  cells = [cell.config for cell in cart_grid.grid() if cell.config.endswith('stage=1')]
  return [Run(cart_grid.run_name(cell), cart_grid.with_texts(cell, given.data)) for cell in cells]


def cpu(d: int, R: int, P: int) -> Run:
  """Returns a run of the small CART at another width."""
  changes = {'model.width': d, 'train.steps': 300}
  return Run(f'd{d}_R{R}_P{P}', f'configs/cart_cpu.py:R={R},P={P}', changes)
