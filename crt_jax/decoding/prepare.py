"""Parameters and state in the form that decoding reads fastest: one array per layer and weight.

A scan over stacked layers copies each layer's weights and cache into a buffer before it multiplies:
six layers of 2 x 19 MB took 41 ms a token with a scan, 112 ms with slices of the stack and 10 ms as
separate arrays (float32, batch 1, jax 0.10.2, 2 cores of an AMD EPYC). The price is that compiling
grows with the number of layers. How a weight is laid out, [out, in], stays as in training; how it
is multiplied on which platform is said in layers/linear.py.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from crt_jax import sharding
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.recurrence.state import DecodeState, apart, is_carry, is_slots, together
from crt_jax.schema.fields import one_of, require
from crt_jax.types import Array, Params

DTYPES = ('float32', 'bfloat16')


def prepare(model: Model, params: dict, dtype: str | None = None) -> tuple[Model, Params]:
  """Casts the weights once to the decoding dtype and separates the layers.

  Only matrices that every token is multiplied by are cast: norms, biases, and an embedding table of
  which a token reads one row, keep their precision, as in training. Unchanged arrays of `params`
  are shared, not copied; delete `params` to keep one copy of the rest.

  Args:
    dtype: 'float32' or 'bfloat16'; None = the model's own.

  Returns: the model with that compute dtype, and the parameters for it.

  Raises:
    ValueError: another dtype, parameters of another model.
  """
  _check_fit(model, params)
  if dtype is not None:
    one_of('dtype', dtype, DTYPES)
    # Decoding attends to caches, which no fused kernel does; one may not support the dtype.
    fields = dataclasses.replace(model.config, dtype=dtype, attention_kernel='xla')
    model = dataclasses.replace(model, config=fields)
  prepared = {}
  for name, part in params.items():
    # A token reads one row of an embedding table.
    is_streamed = name != 'embedding' or 'output' not in params
    prepared[name] = _cast({name: part}, model.config.dtype)[name] if is_streamed else part
  for path in model.stacked:
    prepared = _changed(prepared, path, _separate)
  return model, prepared


def empty_state(
  model: Model, params: dict, batch: int, capacity: int, depth: int | None = None
) -> DecodeState:
  """Returns `model.decode_state`, its caches separated by layer and head as `params` are."""
  state = model.decode_state(batch, capacity, depth)
  caches = state.caches
  for path, cache_path in model.stacked.items():
    if isinstance(functools.reduce(operator.getitem, path, params), tuple):
      caches = _changed(
        caches, cache_path, lambda cache: jax.tree.map(lambda a: a[None], _separate(cache))
      )
  mesh = sharding.mesh_of(params)
  if mesh is not None and mesh.size > 1:
    slots, carries = apart(caches, is_slots, is_carry)
    spec_of = functools.partial(sharding.cache_spec, mesh=mesh)
    slots = jax.tree.map(
      lambda a: jnp.zeros(a.shape, a.dtype, device=NamedSharding(mesh, spec_of(a.shape))), slots
    )
    # States are written in place, and device_put may return the memory of its input.
    carries = jax.tree.map(jnp.copy, jax.device_put(carries, sharding.replicated(mesh)))
    caches = together(slots, carries)
  return dataclasses.replace(state, caches=caches)


def _check_fit(model: Model, params: dict):
  """Raises ValueError for parameters of another model, before anything is compiled."""
  wanted, found = (
    {jax.tree_util.keystr(path, simple=True, separator='/'): a.shape for path, a in leaves}
    for leaves in map(
      jax.tree_util.tree_leaves_with_path, (jax.eval_shape(model.init, random_key(0)), params)
    )
  )
  for name in sorted(wanted.keys() | found.keys()):
    require(
      wanted.get(name) == found.get(name),
      f'these parameters are of another model: {name} is {found.get(name, "missing")}, and '
      f'{model.config.name!r} has {wanted.get(name, "none")}; build the config they came with',
    )


def _cast(part: dict, dtype: str) -> dict:
  """Returns weights of two or more dimensions in the decoding dtype.

  Float64 weights stay float64, and loop codes, of which a token reads no row, keep their dtype.
  """

  def cast(path: tuple, leaf: Array):
    *above, last = (key.key for key in path)
    is_weight = last == 'weight' and leaf.ndim >= 2 and 'loop_code' not in above
    return leaf.astype(dtype) if is_weight and leaf.dtype not in (dtype, jnp.float64) else leaf

  return jax.tree_util.tree_map_with_path(cast, part)


def _separate(stacked: dict) -> tuple[dict, ...]:
  """Returns trees of arrays [N, ...] as N trees of arrays [...]."""
  count = jax.tree.leaves(stacked)[0].shape[0]
  return tuple(jax.tree.map(lambda a, n=n: a[n], stacked) for n in range(count))


def _changed(tree: dict, path: tuple[str, ...], change: Callable) -> dict:
  """Returns the tree with the function `change` applied to the subtree at `path`."""
  if not path:
    return change(tree)
  return tree | {path[0]: _changed(tree[path[0]], path[1:], change)}
