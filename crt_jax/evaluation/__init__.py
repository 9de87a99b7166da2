"""What a model is worth: perplexity in parallel and in sequence, and the figures that show it."""

from crt_jax.evaluation.accuracy import accuracy
from crt_jax.evaluation.perplexity import Form, evaluate, forms, trained_form
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
  'accuracy',
  'during_training',
  'evaluate',
  'forms',
  'protocol',
  'scoring_model',
  'trained_form',
]
