"""Dense transformers that CART has to be compared with: 7 and 12 layers, 3 seeds (cart.md, 8.2).

  python -m experiments.sweep --config=configs/sweeps/cart_parity.py:data=published --executor=slurm
  python -m experiments.sweep --config=configs/sweeps/cart_parity.py:cpu

7 layers store as much as CART at d=1024 does, 12 have as many effective parameters. Published: 7
layers are better by 1.8, 1.1 and 2.0 % (tiny, wiki, edu), 12 by 7.3, 9.9 and 10.5 %. CART's own
numbers are d1024_R6_P6 of configs/sweeps/cart_stage2.py. One GPU of 24 GB, not run here.

`:cpu` is 3 runs of 300 steps: configs/cart_cpu.py and, of the same two sizes, configs/dense_cpu.py.
"""

from configs import cart_grid
from configs.base import Run
from crt_jax.cli.config_files import parse_arguments


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False, data='')
  if given.cpu:
    changes = {'train.steps': 300}
    return [
      Run('cart', 'configs/cart_cpu.py', changes),
      Run('dense_stored', 'configs/dense_cpu.py:layers=4', changes),
      Run('dense_effective', 'configs/dense_cpu.py:layers=6', changes),
    ]
  cells = [cell.config for cell in cart_grid.grid() if 'dense' in cell.config]
  return [Run(cart_grid.run_name(cell), cart_grid.with_texts(cell, given.data)) for cell in cells]
