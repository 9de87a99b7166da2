"""What a model is worth: perplexity in parallel and in sequence, and the figures that show it."""

from crt_jax.evaluation.perplexity import Form, evaluate, forms, protocol

__all__ = ['Form', 'evaluate', 'forms', 'protocol']
