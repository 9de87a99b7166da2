"""A small CRT on the embedded novel, in minutes on a laptop.

  python -m experiments.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import base


def get_config():
  config = base.base(
    base.crt_model(layers=2, width=128, heads=4, dropout=0.0, depth=3, depth_min=2)
  )
  config.data.update(sequence_length=128, batch_size=16)
  config.optimizer.update(learning_rate=2e-3, schedule='cosine', warmup_steps=50)
  config.train.update(steps=400, log_every=20, eval_every=200, checkpoint_every=200)
  config.eval.depths = base.evaluation_depths(3)
  config.sample.prompt = 'Call me'
  return config
