"""Pointer chasing (crt.md, 11): how many tables deep can a model look things up?

  python -m experiments.main --config=configs/pointer_chasing.py:model=bptt,size=cpu

  model   bptt         CRT, one layer, exact backpropagation through time
          unroll       CRT, one layer, K parallel passes (K=5, or as in model=unroll,K=10)
          chunked      CRT, one layer, chunks of c positions, K passes each (c=8,K=2)
          transformer  N layers (N=3; the paper has 1, 3, 5, 10, 11, 12)
  size    cpu          3 keys and 4 values, all 10 levels: T=172, C=64, window 20, rate 1e-3,
                       32 rows, 1 500 steps
          e128         5 keys and 10 values: T=272, C=128, window 38, rate 1e-3, 64 rows
          e256         the same with C=256 and rate 1e-4, the paper's table
  seed    42

All models of a size in one command, with one figure:

  python -m experiments.pointer_chasing --size=cpu --workdir=runs/pointer_chasing

Measured at size=cpu: docs/bptt.md. Published, at e256 after 50 000 steps (not run here yet): the
CRT solves all 10 levels and the final query within 16 000 steps; transformers of N = 1, 3, 5, 10,
11, 12 layers solve 1, 3, 6, 7, 8 and all. At e128 the CRT needs about 20 000 steps. Each command
goes on where it was stopped.
"""

from types import SimpleNamespace

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments
from crt_jax.data.pointer_chasing import PointerChasing

SIZES = {
  'cpu': dict(keys=3, values=4, width=64, window=20, rate=1e-3, rows=32, steps=1_500),
  'e128': dict(keys=5, values=10, width=128, window=38, rate=1e-3, rows=64, steps=30_000),
  'e256': dict(keys=5, values=10, width=256, window=38, rate=1e-4, rows=64, steps=50_000),
}
MODELS = ('bptt', 'unroll', 'chunked', 'transformer')
ARGUMENTS = (
  *(f'model={model},size={size}' for model in MODELS for size in ('cpu', 'e256')),
  *(f'model=transformer,N={layers},size=cpu' for layers in (1, 5, 10, 11, 12)),
  'model=unroll,K=11,size=cpu',
)


def get_config(arguments: str = '') -> ConfigDict:
  given = parse_arguments(arguments, model='bptt', size='cpu', N=3, K=5, c=8, seed=42)
  for name, choices in (('size', SIZES), ('model', MODELS)):
    if getattr(given, name) not in choices:
      raise ArgumentMistake(f'{name}={getattr(given, name)} is none of {", ".join(choices)}')
  size = SIZES[given.size]
  task = PointerChasing(keys=size['keys'], values=size['values'])
  config = schema.experiment(_model(given, size))
  config.seed = given.seed
  config.data.update(
    corpus=f'pointer_chasing:keys={task.keys},values={task.values}',  # 10 levels
    vocab_size=task.vocab_size,
    sequence_length=task.sequence_length,
    batch_size=size['rows'],
  )
  config.optimizer.update(name='adam', learning_rate=size['rate'], weight_decay=0.0)
  every = 250 if given.size == 'cpu' else 500
  config.train.update(steps=size['steps'], log_every=50, eval_every=every, checkpoint_every=every)
  batches = 1024 // size['rows']  # 1 024 examples at the end, 256 on the way
  config.eval.update(batches=batches, during_training_batches=batches // 4, whole=False)
  config.sample.update(
    prompt='QUERY key0.0 value0 EQUALS key0.0 QUERY key0.0', num_tokens=1, temperature=0.0
  )
  return config


def _model(given: SimpleNamespace, size: dict) -> dict:
  """Returns a model with the published settings: four heads, +p*m angles, a window, no dropout."""
  fields = dict(width=size['width'], heads=4, rotary='integer', window=size['window'], dropout=0.0)
  if given.model == 'transformer':
    return base.transformer_model(layers=given.N, **fields)
  driver = {'bptt': 'sequential'}.get(given.model, given.model)
  return base.crt_model(
    layers=1,
    depth=given.K,
    depth_min=0,
    convergence_weight=0.0,
    driver=driver,
    chunk=given.c if driver == 'chunked' else 0,
    **fields,
  )
