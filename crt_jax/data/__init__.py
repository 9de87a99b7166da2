"""Text to batches: corpora, tokenizers, packed tokens, batches as a function of (seed, step)."""

from crt_jax.data import tokenizers
from crt_jax.data.config import DataConfig, resolve
from crt_jax.data.packed import PackedDataset, open_packed, prepare
from crt_jax.data.validation import sampled_validation, whole_validation
from crt_jax.data.windows import TrainBatches, train_batches

__all__ = [
  'DataConfig',
  'PackedDataset',
  'TrainBatches',
  'open_packed',
  'prepare',
  'resolve',
  'sampled_validation',
  'tokenizers',
  'train_batches',
  'whole_validation',
]
