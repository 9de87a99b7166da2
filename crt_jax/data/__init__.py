"""Text to batches: corpora, tokenizers, token files, batches as a function of (seed, step)."""

from crt_jax.data import tokenizers
from crt_jax.data.datasets import Dataset, ValidationSet, check_present, damaged_files, prepare
from crt_jax.data.identity import check_identity
from crt_jax.data.mixture import MixedDataset
from crt_jax.data.token_dataset import PackedDataset, open_packed
from crt_jax.data.training_batches import Batch, TrainBatches, check_seed, train_batches
from crt_jax.data.validation import first_validation, sampled_validation, whole_validation
from crt_jax.schema.data import DataConfig, resolve

__all__ = [
  'Batch',
  'DataConfig',
  'Dataset',
  'MixedDataset',
  'PackedDataset',
  'TrainBatches',
  'ValidationSet',
  'check_identity',
  'check_present',
  'check_seed',
  'damaged_files',
  'first_validation',
  'open_packed',
  'prepare',
  'resolve',
  'sampled_validation',
  'tokenizers',
  'train_batches',
  'whole_validation',
]
