"""crt_jax: recurrent transformers (CRT and CART) as pure functions of their parameters."""

from crt_jax.models.base import build

__all__ = ['build']
__version__ = '0.1.0'
