"""crt_jax: recurrent transformers (CRT and CART) as pure functions of their parameters."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from crt_jax.decoding.loop import generate
  from crt_jax.decoding.sampling import Sampling
  from crt_jax.loading import Trained, load
  from crt_jax.models.base import Model
  from crt_jax.models.registry import build, register
  from crt_jax.recurrence.state import DecodeState

__all__ = ['DecodeState', 'Model', 'Sampling', 'Trained', 'build', 'generate', 'load', 'register']
__version__ = '0.1.0'

_MODULES = {
  'DecodeState': 'crt_jax.recurrence.state',
  'Model': 'crt_jax.models.base',
  'Sampling': 'crt_jax.decoding.sampling',
  'Trained': 'crt_jax.loading',
  'build': 'crt_jax.models.registry',
  'generate': 'crt_jax.decoding.loop',
  'load': 'crt_jax.loading',
  'register': 'crt_jax.models.registry',
}


def __getattr__(name: str) -> Any:
  """Imports JAX at the first use of the library: an entry point answers signals before that."""
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)  # and not again
  return globals()[name]
