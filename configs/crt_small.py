"""A small CRT or transformer on the embedded novel: what the sweeps of CRT run at `:cpu` size.

  python -m experiments.main --config=configs/crt_small.py:D=1,C=200,K=5
  python -m experiments.main --config=configs/crt_small.py:N=6,C=104

  D or N   layers of a CRT (D=2), or of a transformer when N is given
  C        width, 4 heads as in heads=4
  K, kmin  parallel passes, drawn from kmin to K in training; kmin=0: always K
  T, batch, steps, seed

The recipe of configs/quickstart.py, which says what that reached; these were not measured one by
one.
"""

from ml_collections import ConfigDict

from configs import base, quickstart
from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('', 'N=6,C=104')
SIZES = dict(D=2, N=0, C=160, heads=4, K=3, kmin=2, T=128, batch=16, steps=300, seed=42)


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, **SIZES)
  shape = dict(width=given.C, heads=given.heads, dropout=0.0)
  if given.N:
    model = base.transformer_model(layers=given.N, **shape)
  else:
    model = base.crt_model(layers=given.D, depth=given.K, depth_min=given.kmin, **shape)
  config = quickstart.recipe(model)
  config.seed = given.seed
  config.data.update(sequence_length=given.T, batch_size=given.batch)
  config.train.update(steps=given.steps, eval_every=100, checkpoint_every=100)
  config.sample.num_tokens = 40
  return config
