"""What a model is worth: perplexity in parallel and in sequence, and the figures that show it."""

from crt_jax.evaluation.perplexity import Form, evaluate, forms
from crt_jax.evaluation.protocols import (
  DTYPES,
  SAMPLES,
  during_training,
  protocol,
  scoring_model,
)

__all__ = [
  'DTYPES',
  'SAMPLES',
  'Form',
  'during_training',
  'evaluate',
  'forms',
  'protocol',
  'scoring_model',
]
