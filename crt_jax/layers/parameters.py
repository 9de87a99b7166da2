"""How a layer declares a parameter: shape, initialiser and logical axis names."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from crt_jax.keys import random_key
from crt_jax.types import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Declaration:
  axes: tuple[str, ...]
  shape: tuple[int, ...]
  init: Callable


def parameter(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...]
) -> Array:
  """Declares a parameter of `module`; `init(key, shape)` draws it, `axes` names its dimensions."""
  if len(shape) != len(axes):
    raise ValueError(f'{name}: shape {shape} and axes {axes} differ in length')
  if module.is_mutable_collection('declarations'):
    module.put_variable('declarations', name, _Declaration(axes, shape, init))
  return module.param(name, init, shape)


def init_params(
  module: nn.Module, key: Array, *args: Array, dtype: DTypeLike = jnp.float32
) -> dict:
  """Returns the parameters of one layer as a plain dict of arrays in `dtype`.

  All keys come from one split: linen would fold each name into the key, and compiling those hashes
  takes longer than everything else that a small model compiles.
  """
  declarations, tree = jax.tree.flatten(_declarations(module, *args), is_leaf=_is_declaration)
  keys = jax.random.split(key, len(declarations))
  arrays = [d.init(k, d.shape).astype(dtype) for d, k in zip(declarations, keys, strict=True)]
  return jax.tree.unflatten(tree, arrays)


def axes_of(module: nn.Module, *args: Array) -> dict:
  """Returns the tree of `init_params` with a PartitionSpec of logical names at each leaf."""
  declarations = _declarations(module, *args)
  return jax.tree.map(lambda d: PartitionSpec(*d.axes), declarations, is_leaf=_is_declaration)


def stacked_axes(axes: dict) -> dict:
  """Returns the axes of a stack of layers: the same names after a leading 'layers'."""
  return jax.tree.map(lambda spec: PartitionSpec('layers', *spec), axes)


def compute_dtype(dtype: str, param_dtype: DTypeLike) -> jnp.dtype:
  """Returns the dtype a layer computes in: the configured one, or float64 as the parameters."""
  if param_dtype == jnp.float64 and dtype == 'float32':
    return jnp.dtype('float64')
  return jnp.dtype(dtype)


def uniform_fan_in(fan_in: int) -> Callable:
  """Draws from U(-1/sqrt(fan_in), +1/sqrt(fan_in)), PyTorch's default (crt.md 2.6)."""
  bound = fan_in**-0.5
  return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def normal(stddev: float) -> Callable:
  return lambda key, shape: stddev * jax.random.normal(key, shape)


def _declarations(module: nn.Module, *args: Array) -> dict:
  declare = functools.partial(module.init, mutable=['params', 'declarations'])
  return jax.eval_shape(declare, random_key(0), *args)['declarations']


def _is_declaration(leaf: object) -> bool:
  return isinstance(leaf, _Declaration)
