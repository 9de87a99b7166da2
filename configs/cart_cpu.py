"""A small CART on speeches and a novel, for some minutes on two cores: d=128, P=2, R=4.

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.main --config=configs/cart_cpu.py --workdir=runs/cart_cpu
  python -m experiments.main --config=configs/cart_cpu.py:R=8,P=3

The whole way of the published runs: a mixture in file order, one vocabulary, a validation set for
each source, the first 50 windows of each. 1.5 M parameters, 1.2 M tokens; a higher learning rate
than published, for so short a run. Which perplexity it reaches was not measured yet.
"""

from ml_collections import ConfigDict

from configs import base, cart_base
from crt_jax.cli.config_files import parse_arguments


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, R=4, P=2, seed=42)
  model = base.cart_model(width=128, prelude_layers=given.P, loops=given.R)
  config = recipe(model, given.seed)
  config.train.telemetry_every = 50
  config.eval.depths = (1, 2, given.R, 2 * given.R)
  config.eval.jacobian_iterations = 40
  return config


def recipe(model: dict, seed: int) -> ConfigDict:
  """Returns the recipe of size=cpu on the speeches and the novel, around a model."""
  config = cart_base.small(model, seed, cart_base.speeches_and_novel)
  config.sample.update(prompt='Fellow citizens,', num_tokens=120)
  return config
