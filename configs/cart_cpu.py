"""A small CART on speeches and a novel, for some minutes on two cores: d=128, P=2, R=4.

  pip install 'crt_jax[data]'
  python -m experiments.main --config=configs/cart_cpu.py --workdir=runs/cart_cpu
  python -m experiments.main --config=configs/cart_cpu.py:R=8,P=3

The whole way of the published runs: a mixture in file order, one vocabulary, a validation set for
each source, the first 50 windows of each. 1.5 M parameters, 1.2 M tokens; a higher learning rate
than published, for so short a run. Which perplexity it reaches was not measured yet.
"""

from ml_collections import ConfigDict

from configs import base, cart_base
from crt_jax import schema
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
  """Returns the published recipe, shortened, around a model."""
  config = schema.experiment(model)
  config.seed = seed
  config.data.update(
    corpus='mixture',
    interleave='speeches:5, novel:1',  # 2.1 M tokens before the novel ends
    tokenizer='bpe',
    vocab_size=4096,
    separator='bos_eos',
    sequence_length=128,
    batch_size=16,
    sampling='in_order',
  )
  config.data.sources = ConfigDict(
    dict(speeches=schema.source(corpus='sotu'), novel=schema.source(corpus='moby_dick'))
  )
  cart_base.optimiser(config.optimizer)
  config.optimizer.update(learning_rate=3e-3, final_learning_rate=1e-4, warmup_steps=40)
  config.train.update(steps=600, log_every=20, eval_every=100, checkpoint_every=100)
  config.eval.update(sample='first', windows=50)
  config.sample.update(prompt='Fellow citizens,', num_tokens=120)
  return config
