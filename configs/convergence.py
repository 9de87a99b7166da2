"""A small CRT trained on long windows, to see how its passes converge (crt.md, 3.1).

  python -m experiments.main --config=configs/convergence.py:seed=42 --workdir=runs/c42
  python -m experiments.convergence --workdir=runs/c42,runs/c137,runs/c271 --output=runs/convergence

D=1, C=64, K drawn from 2 to 5, on windows of 2 048 bytes of Moby-Dick. Three checkpoints stay on
disk for the study. 4 to 5 minutes on one core of an AMD EPYC. Nothing like it is published; what
was measured with it stands in docs/bptt.md.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema
from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('seed=137',)


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, seed=42)
  config = schema.experiment(base.crt_model(layers=1, width=64, heads=2, dropout=0.0))
  config.seed = given.seed
  config.data.update(sequence_length=2048, batch_size=2)
  config.optimizer.update(
    learning_rate=3e-3,
    schedule='cosine',
    warmup_steps=30,
    final_learning_rate=3e-4,
    b2=0.99,
    weight_decay=0.1,
  )
  config.train.update(steps=450, log_every=10, eval_every=150, checkpoint_every=150)
  config.train.keep_checkpoints = 3
  config.eval.update(batches=4, during_training_batches=2, whole=False)
  config.eval.depths = (1, 2, 3, 5, 10)
  return config
