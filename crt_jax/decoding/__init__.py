"""Writing text: how a token is drawn, and the one loop that scans `model.step`."""

from crt_jax.decoding.loop import generate, stream
from crt_jax.decoding.prepare import prepare
from crt_jax.decoding.sampling import Sampling, noise, row_keys, sample

__all__ = ['Sampling', 'generate', 'noise', 'prepare', 'row_keys', 'sample', 'stream']
