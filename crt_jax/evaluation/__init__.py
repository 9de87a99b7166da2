"""What a model is worth: perplexity in parallel and in sequence, and the figures that show it."""

from crt_jax.evaluation.accuracy import accuracy, answers
from crt_jax.evaluation.perplexity import Form, evaluate, forms, protocol, trained_form

__all__ = ['Form', 'accuracy', 'answers', 'evaluate', 'forms', 'protocol', 'trained_form']
