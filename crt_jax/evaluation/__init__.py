"""Evaluation: perplexity by parallel passes and in sequence, task scores, figures."""

from crt_jax.evaluation.accuracy import accuracy
from crt_jax.evaluation.ledger import Ledger
from crt_jax.evaluation.perplexity import Form, evaluate, forms, trained_form
from crt_jax.evaluation.protocols import (
  Part,
  during_training,
  plan,
  protocol,
  rehearse,
  scoring_model,
)

__all__ = [
  'Form',
  'Ledger',
  'Part',
  'accuracy',
  'during_training',
  'evaluate',
  'forms',
  'plan',
  'protocol',
  'rehearse',
  'scoring_model',
  'trained_form',
]
