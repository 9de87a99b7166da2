"""Single linen modules of a model, such as its embedding and final norm, by name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crt_jax.layers.feed_forward import FeedForward
from crt_jax.layers.linear import Embedding
from crt_jax.layers.norm import Norm
from crt_jax.layers.parameters import axes_of, init_params
from crt_jax.models import decode_kernel
from crt_jax.schema import ModelConfig
from crt_jax.types import Array


def init_modules(modules: dict, config: ModelConfig, key: Array) -> dict:
  """Returns the parameters of single (not stacked) modules, by name."""
  keys = jax.random.split(key, len(modules))
  return {
    name: init_params(module, k, example_input(module, config), dtype=config.param_dtype)
    for k, (name, module) in zip(keys, modules.items(), strict=True)
  }


def axes_of_modules(modules: dict, config: ModelConfig) -> dict:
  return {name: axes_of(module, example_input(module, config)) for name, module in modules.items()}


def apply_module(module: nn.Module, params: dict, *args: Any, key: Array | None = None) -> Any:
  """Applies one linen module as a pure function; key=None means no dropout."""
  rngs = None if key is None else {'dropout': key}
  return module.apply({'params': params}, *args, rngs=rngs)


def normed_feed_forward(
  modules: tuple[Norm, FeedForward],
  params: tuple[dict, dict],
  x: Array,
  onto: Array | None = None,
  key: Array | None = None,
  kernel: str = 'xla',
) -> Array:
  """Returns onto + FeedForward(Norm(x)) in the dtype of x; `kernel` is `config.decode_kernel`."""
  if decode_kernel.is_single_row(kernel, x):
    from crt_jax.layers import single_row

    return single_row.feed_forward(modules, params, x, onto, kernel == 'interpreted')
  y = apply_module(modules[1], params[1], apply_module(modules[0], params[0], x), key=key)
  return y.astype(x.dtype) if onto is None else onto + y.astype(x.dtype)


def example_input(module: nn.Module, config: ModelConfig) -> Array:
  """Returns an input of the shape and dtype that a module of this model takes."""
  if isinstance(module, Embedding):
    return jnp.zeros((1, 1), jnp.int32)
  width = getattr(module, 'in_width', 0) or getattr(module, 'width', config.width)
  return jnp.zeros((1, 1, width), config.param_dtype)
