"""Does CART's gate stabilise the recurrence, or does weight decay set it (cart.md 9.3)?

  python -m experiments.study --config=configs/studies/gate.py --workdir=runs/gate

A small CART (C=128, P=2, R=4, bytes of Moby-Dick) under the published recipe, shortened to 2000
steps: the gate starts at 0.5, 0.9 or 0.99, with weight decay on everything as published or on
everything but the gate; and at 0.9 also frozen, or switched off. Three seeds each, same batches.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema

STARTS = (0.5, 0.9, 0.99)


def get_config() -> ConfigDict:
  config = small_run()
  variants: dict[str, dict] = {}
  for start in STARTS:
    variants[f'decay_{start}'] = {'model': {'gate_init': start}}
    variants[f'no_decay_{start}'] = {
      'model': {'gate_init': start},
      'optimizer': {'decay_mask': 'all_but_gate'},
    }
  variants['frozen_0.9'] = {'optimizer': {'frozen': ('gate',)}}
  variants['off'] = {'model': {'gate': False}}
  return base.study(config, variants, figure='gate')


def small_run() -> ConfigDict:
  """Returns the published recipe (cart.md 6) at a size that trains three seeds in minutes."""
  config = schema.experiment(base.cart_model(width=128, prelude_layers=2, loops=4))
  config.data.update(sequence_length=64, batch_size=4, sampling='in_order')
  config.optimizer.update(
    learning_rate=3e-4,
    final_learning_rate=3e-5,
    schedule='cosine',
    warmup_steps=100,
    b2=0.95,
    weight_decay=0.1,
  )
  config.train.update(steps=2000, log_every=100, telemetry_every=100)
  config.eval.sequential = False
  return config
