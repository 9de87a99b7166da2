"""Which recurrence: along the sequence, along depth, both or neither, at one cost per token.

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.main --config=configs/both_cpu.py:which=both,C=112

  which   neither   N layers in the style of Llama
          crt       a CRT over D such layers, K drawn from 2 and 3
          cart      a CART, P layers and R loops, keys and values through a latent
          both      a CRT whose block is that CART
  C       width, heads of 16
  N, D, P, R, seed

The text and recipe of configs/cart_cpu.py. experiments/claims finds the widths of one cost. Not
measured yet.
"""

from types import SimpleNamespace

from ml_collections import ConfigDict

from configs import base, cart_cpu
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments

HEAD = 16
SIZES = dict(which='both', C=128, N=6, D=4, P=2, R=4, seed=42)
ARGUMENTS = ('', 'which=neither', 'which=crt', 'which=cart')


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, **SIZES)
  config = cart_cpu.recipe(model(given), given.seed)
  config.eval.whole_tokens = 131_072
  if given.which == 'cart':
    config.train.telemetry_every = 50
    config.eval.jacobian_iterations = 40
  return config


def model(given: SimpleNamespace) -> dict:
  """Returns the fields of the model that is asked for."""
  layers = dict(heads=given.C // HEAD, style='llama', rotary='standard')
  loops = dict(head_width=HEAD, prelude_layers=given.P, loops=given.R)
  passes = dict(width=given.C, depth=3, depth_min=2, dropout=0.0, rotary='standard')
  makers = {
    'neither': lambda: base.transformer_model(layers=given.N, width=given.C, dropout=0.0, **layers),
    'crt': lambda: base.crt_model(layers=given.D, **passes | layers),
    'cart': lambda: base.cart_model(width=given.C, **loops),
    'both': lambda: base.crt_model(block='cart', layers=0, **passes | dict(heads=0) | loops),
  }
  if given.which not in makers:
    raise ArgumentMistake(f'which={given.which!r} must be one of {", ".join(makers)}')
  return makers[given.which]()
