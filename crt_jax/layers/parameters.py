"""How a layer declares a parameter: shape, initialiser and a logical name for each dimension."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Array = jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Axes:
  names: tuple[str, ...]


def parameter(
  module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...]
) -> Array:
  """Declares a parameter of `module` and records its logical axes for `axes_of`."""
  if len(shape) != len(axes):
    raise ValueError(f'{name}: shape {shape} and axes {axes} differ in length')
  if module.is_mutable_collection('axes'):
    module.put_variable('axes', name, _Axes(axes))
  return module.param(name, init, shape)


def init_params(module: nn.Module, key: Array, *args, dtype=jnp.float32) -> dict:
  """The parameters of one layer as a plain dict, without the axes collection."""
  params = module.init(key, *args, mutable=['params']).get('params', {})
  return jax.tree.map(lambda a: a.astype(dtype), params)


def axes_of(module: nn.Module, *args) -> dict:
  """The tree of `init_params` with a PartitionSpec of logical names at each leaf."""
  declare = functools.partial(module.init, mutable=['params', 'axes'])
  tree = jax.eval_shape(declare, jax.random.key(0), *args).get('axes', {})
  return jax.tree.map(
    lambda a: PartitionSpec(*a.names), tree, is_leaf=lambda leaf: isinstance(leaf, _Axes)
  )


def stacked_axes(axes: dict) -> dict:
  """The axes of a stack of layers: the same names behind a leading 'layers'."""
  return jax.tree.map(lambda spec: PartitionSpec('layers', *spec), axes)


def compute_dtype(dtype: str, param_dtype) -> jnp.dtype:
  """What a layer computes in: its configured dtype, but float64 where the parameters are."""
  if param_dtype == jnp.float64 and dtype == 'float32':
    return jnp.dtype('float64')
  return jnp.dtype(dtype)


def uniform_fan_in(fan_in: int) -> Callable:
  """U(-1/sqrt(fan_in), +1/sqrt(fan_in)), PyTorch's default for weight and bias (crt.md 2.6)."""
  bound = fan_in**-0.5
  return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def normal(stddev: float) -> Callable:
  return lambda key, shape: stddev * jax.random.normal(key, shape)
