"""crt_jax: recurrent transformers (CRT and CART) as pure functions of their parameters."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from crt_jax.models.base import build

__all__ = ['build']
__version__ = '0.1.0'


def __getattr__(name: str):
  """Imports JAX at the first use of the library: an entry point answers signals before that."""
  if name == 'build':
    from crt_jax.models.base import build

    return build
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
