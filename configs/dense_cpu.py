"""Small dense baselines of configs/cart_cpu.py, for some minutes on two cores: d=128.

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.main --config=configs/dense_cpu.py --workdir=runs/dense_cpu
  python -m experiments.main --config=configs/dense_cpu.py:layers=6

layers=4 stores about what that CART stores (1.57 M against 1.50 M parameters), layers=6 about what
it uses effectively (2.10 M against 2.19 M). The same text, recipe and steps. Not measured yet.
"""

from ml_collections import ConfigDict

from configs import base, cart_cpu
from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('', 'layers=6')


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, layers=4, seed=42)
  shape = dict(layers=given.layers, width=128, heads=2, style='cart_dense', rotary='standard')
  return cart_cpu.recipe(base.transformer_model(dropout=0.0, **shape), given.seed)
