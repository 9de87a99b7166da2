"""Text generation: how a token is drawn, and the one loop that scans `model.step`."""

from crt_jax.decoding.loop import NotFinite, generate, stream
from crt_jax.decoding.prepare import prepare
from crt_jax.decoding.sampling import Sampling, noise, row_keys, sample
from crt_jax.decoding.text import continuation, prompt_tokens, sample_arguments, stop_tokens

__all__ = [
  'NotFinite',
  'Sampling',
  'continuation',
  'generate',
  'noise',
  'prepare',
  'prompt_tokens',
  'row_keys',
  'sample',
  'sample_arguments',
  'stop_tokens',
  'stream',
]
