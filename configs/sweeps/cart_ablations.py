"""Which part of CART does what: the baseline and its seven published ablations (cart.md, 8.3).

  python -m experiments.sweep --config=configs/sweeps/cart_ablations.py:data=published \\
      --executor=slurm
  python -m experiments.sweep --config=configs/sweeps/cart_ablations.py:follow_ups,data=published
  python -m experiments.sweep --config=configs/sweeps/cart_ablations.py:cpu

d=1024, P=6, R=6, seed 42; published numbers: configs/cart_ablations.py. `follow_ups` adds the eight
runs of configs/cart_follow_ups.py, which nobody has published. 8.5 to 9 h a run on an RTX 3090. Not
run here. The texts: configs/cart_base.py.

`:cpu` is the same switches, 8 runs of configs/cart_cpu.py of 300 steps.
"""

from configs import cart_ablations, cart_base, cart_follow_ups, cart_grid
from configs.base import Run
from crt_jax.cli.config_files import parse_arguments


def get_sweep(arguments: str = '') -> list[Run]:
  given = parse_arguments(arguments, cpu=False, follow_ups=False, data='')
  if given.cpu:
    return [Run(name, 'configs/cart_cpu.py', changes) for name, changes in cpu().items()]
  files = {'cart_ablations': cart_ablations.VARIANTS}
  files |= {'cart_follow_ups': cart_follow_ups.VARIANTS} if given.follow_ups else {}
  variants = [
    Run(name, cart_grid.with_texts(f'configs/{file}.py:which={name}', given.data))
    for file, table in files.items()
    for name in table
  ]
  return [Run('baseline', cart_grid.with_texts('configs/cart_d1024.py:R=6', given.data)), *variants]


def cpu() -> dict[str, dict]:
  """Returns the fields that each ablation changes, by its name."""
  common = {'train.steps': 300, 'eval.depths': ()}  # an unshared core has no more than its loops
  whole = cart_base.cart_model()
  switched = {
    name: {f'model.{field}': value for field, value in model.items() if value != whole[field]}
    for name, model in {'baseline': whole, **cart_ablations.VARIANTS}.items()
  }
  return {name: {**common, **changes} for name, changes in switched.items()}
