"""The device mesh, and the table that maps logical axes to mesh axes.

A model names the axes of its parameters (`model.axes()`); the names are bound to mesh axes here and
nowhere else. The mesh has three axes:
`data` (replicas of the parameters), `fsdp` (the parameters are split, the batch too) and `tensor`
(heads and hidden units are split).

What happens when a dimension does not divide:
  * `tensor`: an error, because a model that is meant to be split by heads must have heads to split.
  * `fsdp`: the largest other dimension of the same parameter that divides takes it; when none does
    the parameter is replicated and a line in the log says so. So it is with matrices of a latent
    that have no width. Splitting is a matter of memory only, so this never changes a result.
"""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from crt_jax import schema
from crt_jax.types import Array, Batch, Tree

AnyMesh = Mesh | AbstractMesh


MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis of a parameter -> mesh axis. A name that is absent is an error, so that a new axis is
# thought about once.
RULES: Mapping[str, str | None] = {
  'vocab': 'tensor',
  'positions': None,
  'width': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_width': None,
  'feed_forward': 'tensor',
  'latent': None,
  'qkv': None,
  'keys_values': None,
  'gate_up': None,
  'layers': None,
  'loops': None,
  'history': None,
  'loop_code': None,
}

# The batch is split over every axis that holds different examples.
BATCH_AXES = ('data', 'fsdp')


class Unfit(ValueError):
  """A parameter cannot be split as the mesh asks; the message names it and what would fit."""


def mesh_shape(config: schema.MeshConfig | ConfigDict, num_devices: int) -> dict[str, int]:
  """Returns the size of each mesh axis for a config.mesh.

  One of data, fsdp and tensor may be -1, which takes all remaining devices.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  mesh = schema.resolve(schema.MeshConfig, config)
  sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
  free = [axis for axis, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if num_devices % fixed or (not free and fixed != num_devices):
    named = ', '.join(f'mesh.{axis}={size}' for axis, size in sizes.items())
    set_axes = ' x '.join(f'mesh.{axis}' for axis in MESH_AXES if axis not in free)
    fix = f'{set_axes} must divide their number' if free else 'mesh.data=-1 takes all that are left'
    raise ValueError(f'{named} does not fit {num_devices} device{"s" * (num_devices != 1)}; {fix}')
  return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}


def make_mesh(
  config: schema.MeshConfig | ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of a config.mesh over all devices.

  Its axes are Auto: the compiler places what we do not.
  """
  devices = jax.devices() if devices is None else devices
  types = (AxisType.Auto,) * len(MESH_AXES)
  return Mesh(arranged(config, devices), MESH_AXES, axis_types=types)


def arranged(config: schema.MeshConfig | ConfigDict, devices: Sequence[jax.Device]) -> np.ndarray:
  """Returns the devices in the shape of the mesh, with one axis across slices or nodes.

  Only the axis config.mesh.across crosses the network between slices of a TPU, or nodes of GPUs
  (JAX calls both a slice).

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or that axis does not divide by
      the number of slices.
  """
  sizes = mesh_shape(config, len(devices))
  outer = _across(schema.resolve(schema.MeshConfig, config).across, sizes, devices)
  if max(outer) == 1:
    return mesh_utils.create_device_mesh(
      list(sizes.values()), devices, allow_split_physical_axes=True
    )
  inner = [size // slices for size, slices in zip(sizes.values(), outer, strict=True)]
  return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def _across(across: str, sizes: dict[str, int], devices: Sequence[jax.Device]) -> list[int]:
  """Returns over how many slices each axis of the mesh extends."""
  counts = collections.Counter(getattr(device, 'slice_index', 0) for device in devices)
  even = len(set(counts.values())) == 1
  left, found = len(counts) if even else 1, []
  for axis, size in sizes.items():
    found.append(math.gcd(size, left) if across in (axis, 'any') else 1)
    left //= found[-1]
  if left > 1 or not (even or across == 'any'):
    raise ValueError(
      f'mesh.across={across!r}: mesh.{across}={sizes[across]} cannot be laid over {len(counts)} '
      f'slices or nodes of {", ".join(map(str, sorted(set(counts.values()))))} devices; use a '
      f"multiple of {len(counts)} and as many devices on each, or mesh.across='any'"
    )
  return found


def tensor_mesh(size: int) -> Mesh:
  """Returns the mesh of a model that is split over the first `size` devices, not replicated.

  Raises:
    ValueError: there are fewer devices.
  """
  devices = jax.devices()
  if len(devices) < size:
    raise ValueError(f'--tensor={size} needs {size} devices, there are {len(devices)}')
  types = (AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh((1, 1, size), MESH_AXES, axis_types=types, devices=devices[:size])


def make_abstract_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
  """Returns a mesh without devices, enough to lower a step and find sharding errors."""
  return AbstractMesh((data, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of a value that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
  """Returns the sharding of tokens_BxT and targets_BxT: rows are split, positions are not."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(batch_size: int, accumulation: int, mesh: AnyMesh) -> None:
  """Raises ValueError unless each of the `accumulation` slices splits evenly over the mesh."""
  shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  unit = shards * accumulation
  if batch_size % unit:
    fits = [n for n in (batch_size // unit * unit, (batch_size // unit + 1) * unit) if n]
    raise ValueError(
      f'data.batch_size={batch_size} must be divisible by {unit} (mesh.data x mesh.fsdp = '
      f'{shards}, '
      f'train.accumulation={accumulation}); use {" or ".join(map(str, fits))}'
    )


def own_row_specs(params: Tree, gather: str, mesh: AnyMesh) -> Tree:
  """Returns the parameter specs for `on_own_rows`; None if the compiler splits the computation."""
  rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if rows == 1 or (mesh.shape['fsdp'] > 1 and gather == 'layer'):
    return None

  def without_tensor(x: Any):  # an array or its shape, with a NamedSharding
    return PartitionSpec(*(None if axis == 'tensor' else axis for axis in x.sharding.spec))

  return jax.tree.map(without_tensor, params)


def split_rows(x_Bx: jax.Array) -> jax.Array:
  """Keeps the rows of an activation on their devices; the identity outside `in_mesh`.

  A model calls it once, on the embeddings. Without it the compiler may follow the parameters
  instead, which lie on the same mesh axis: it then gathers every device's examples and adds up
  partial products at each layer, instead of gathering the layer's weights.
  """
  axes = shared_axes()
  if not set(BATCH_AXES) <= set(axes):
    return x_Bx
  if x_Bx.shape[0] % math.prod(axes[axis] for axis in BATCH_AXES):
    return x_Bx  # a single prompt, which every device reads whole
  return jax.lax.with_sharding_constraint(x_Bx, PartitionSpec(BATCH_AXES))


def gather_rows(table_VxC: jax.Array, split: bool = True) -> jax.Array:
  """Keeps whole rows of a table on each device that reads them; the identity outside `in_mesh`.

  Each device reads all rows, unless they are `split` as tokens are. The vocabulary stays split over
  `tensor`, so each device finds its own tokens and the rest is added up. Without this the compiler
  reads columns for the examples of all devices, then moves them.
  """
  axes = shared_axes()
  if math.prod(axes.values()) == 1:
    return table_VxC
  rows = 'tensor' if split and axes['tensor'] > 1 else None
  return jax.lax.with_sharding_constraint(table_VxC, PartitionSpec(rows, None))


def cache_spec(shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
  """Returns the spec of a decoding cache [N, B, H, S, A]: rows over data, heads over `tensor`.

  An axis that a dimension does not divide by is left out.
  """
  rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  over_rows = None if rows == 1 or shape[1] % rows else BATCH_AXES
  tensor = mesh.shape['tensor']
  over_heads = None if tensor == 1 or shape[2] % tensor else 'tensor'
  return PartitionSpec(None, over_rows, over_heads)


def mesh_of(params: Tree) -> AnyMesh | None:
  """Returns the mesh that parameters lie on; None if they lie on a single device."""
  shardings = (getattr(x, 'sharding', None) for x in jax.tree.leaves(params))
  meshes = (s.mesh for s in shardings if isinstance(s, NamedSharding))
  return next((m for m in meshes if set(MESH_AXES) <= set(m.axis_names)), None)


def platform_of(tree: Tree) -> str:
  """Returns the platform of the devices that hold, or will hold, the arrays of a tree.

  If no array names its devices, it is the default platform.
  """
  return devices_of(tree)[0].platform


def devices_of(tree: Tree) -> list[jax.Device]:
  """Returns the devices of `platform_of`; of the default platform, the first."""
  placed = [a.sharding for a in jax.tree.leaves(tree) if getattr(a, 'sharding', None) is not None]
  return list(placed[0].device_set) if placed else jax.devices()[:1]


def shared_axes() -> dict[str, int]:
  """Returns the mesh axes, with sizes, over which the compiler splits the current trace.

  There are none outside `in_mesh`, and none of the batch if each device has its own rows
  (`on_own_rows`).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not set(MESH_AXES) <= set(mesh.axis_names):
    return {}
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  return {axis: mesh.shape[axis] for axis in MESH_AXES if kinds[axis] != AxisType.Manual}


def rows_are_own() -> bool:
  """Returns whether the current trace is one device's part of the batch (`on_own_rows`)."""
  mesh = jax.sharding.get_abstract_mesh()
  return set(MESH_AXES) <= set(mesh.axis_names) and not set(BATCH_AXES) & set(shared_axes())


def on_own_rows(function: Callable, specs: Tree) -> Callable:
  """Returns `function`(params, batch, key) -> means, metrics, run by each device on its own rows.

  Call it inside `in_mesh`. What lies on `tensor` stays split by the compiler. Both results are
  means over counted targets, of which there are metrics['targets'] (a mean over all positions is
  that of one device if rows count equally many); the means are a tree like the parameters. The
  devices' means are combined once, at the end: the compiler by itself adds gradients up over
  devices where they arise, in every turn of a loop over layers, passes or chunks of the loss.
  Likewise parameters that are split over `fsdp` are gathered once, and their means are split as
  they are. What `row_keys` draws is what one device would draw.

  Args:
    specs: the PartitionSpecs of the parameters without `tensor`, or of whole branches of their
      tree.
  """
  everywhere = PartitionSpec()
  # An axis of one device is no work for the compiler, which refuses kernels such as cuDNN's.
  mesh = jax.sharding.get_abstract_mesh()
  by_hand = {*BATCH_AXES, *(axis for axis in MESH_AXES if mesh.shape[axis] == 1)}

  def own(params: Tree, batch: Batch, key: Array):
    each = jax.tree.broadcast(specs, params)
    means, metrics = function(jax.tree.map(_gather, params, each), batch, key)
    counted = jnp.asarray(metrics['targets'], jnp.float32)
    total = jax.lax.psum(counted, BATCH_AXES)

    def mean(x: Array, spec: PartitionSpec = everywhere):
      return (_add_up(counted * x, spec) / jnp.maximum(total, 1)).astype(jnp.asarray(x).dtype)

    means, metrics = jax.tree.map(mean, means, each), jax.tree.map(mean, metrics)
    return means, {**metrics, 'targets': total}

  return jax.shard_map(
    own,
    in_specs=(specs, PartitionSpec(BATCH_AXES), everywhere),
    out_specs=(specs, everywhere),
    axis_names=by_hand,
    check_vma=False,
  )


def _gather(shard: Array, spec: PartitionSpec):
  """Returns a whole parameter from its shards on `fsdp`."""
  if 'fsdp' not in spec:
    return shard
  return jax.lax.all_gather(shard, 'fsdp', axis=spec.index('fsdp'), tiled=True)


def _add_up(x: Array, spec: PartitionSpec):
  """Returns the sum over devices, each keeping the shard that `spec` gives it."""
  if 'fsdp' not in spec:
    return jax.lax.psum(x, BATCH_AXES)
  x = jax.lax.psum_scatter(x, 'fsdp', scatter_dimension=spec.index('fsdp'), tiled=True)
  return x if jax.lax.axis_size('data') == 1 else jax.lax.psum(x, 'data')


def row_keys(key: jax.Array, rows: int) -> jax.Array:
  """Returns a key for each of the `rows` at hand, fold_in(key, index of the row in the batch).

  A mask drawn from it is the same on every mesh.
  """
  first = rows * jax.lax.axis_index(BATCH_AXES) if rows_are_own() else 0
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(rows))


@contextlib.contextmanager
def in_mesh(mesh: AnyMesh) -> Iterator[None]:
  """Returns the context, or decorator, in which a function that uses `split_rows` is traced.

  The mesh is a Mesh or an AbstractMesh.
  """
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh):
    yield


def param_shardings(axes: Tree, shapes: Tree, mesh: AnyMesh) -> Tree:
  """Returns the NamedSharding of every parameter.

  Args:
    axes: the tree of a model's axes(): PartitionSpecs of logical names, one per dimension (None:
      never split).
    shapes: the same tree with anything that has a shape.
    mesh: a Mesh or an AbstractMesh with the axes MESH_AXES.

  Raises:
    ValueError: trees differ, a name is unknown, a mesh axis would be used twice, or (Unfit) a
      dimension does not divide by `tensor`.
  """
  axes_by_path = dict(jax.tree_util.tree_flatten_with_path(axes, is_leaf=is_spec)[0])
  leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
  missing = {path for path, _ in leaves} ^ set(axes_by_path)
  if missing:
    names = ', '.join(sorted(jax.tree_util.keystr(p, simple=True, separator='/') for p in missing))
    raise ValueError(f'model.axes() and the parameters differ in: {names}')
  specs = [
    spec_of(
      jax.tree_util.keystr(path, simple=True, separator='/'), axes_by_path[path], x.shape, mesh
    )
    for path, x in leaves
  ]
  return jax.tree.unflatten(treedef, [NamedSharding(mesh, spec) for spec in specs])


def spec_of(name: str, axes: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
  """Returns the PartitionSpec of one parameter by the rules of this module.

  The module's docstring says what happens if a dimension does not divide.
  """
  if len(axes) != len(shape):
    raise ValueError(f'parameter {name}: {len(axes)} axis names {tuple(axes)} for shape {shape}')
  spec: list[str | None] = []
  for dim, logical in enumerate(axes):
    if logical is not None and logical not in RULES:
      raise ValueError(
        f'parameter {name}, dimension {dim}: axis {logical!r} has no rule in '
        f'crt_jax/sharding.py; known: {", ".join(RULES)}'
      )
    mesh_axis = RULES[logical] if logical is not None else None
    if mesh_axis is not None and mesh.shape[mesh_axis] == 1:
      mesh_axis = None
    if mesh_axis is not None and mesh_axis in spec:
      raise ValueError(
        f'parameter {name}: dimensions {spec.index(mesh_axis)} and {dim} {tuple(axes)} both lie '
        'on mesh axis '
        f'{mesh_axis!r}; change one rule in crt_jax/sharding.py'
      )
    size = 1 if mesh_axis is None else mesh.shape[mesh_axis]
    if shape[dim] % size:
      if mesh_axis == 'tensor':
        raise Unfit(
          f'parameter {name}, dimension {dim} ({logical}, {shape[dim]}) is not divisible by '
          f'mesh.tensor={size}; use mesh.tensor={largest_divisor(shape[dim], size)}, or '
          f'{neighbours(logical, shape[dim], size)} {logical}'
        )
      mesh_axis = None
    spec.append(mesh_axis)
  wanted = any(
    logical == 'latent' or (logical is not None and RULES[logical] == 'fsdp') for logical in axes
  )
  if wanted and mesh.shape['fsdp'] > 1 and 'fsdp' not in spec:
    spec = split_elsewhere(name, spec, shape, mesh.shape['fsdp'])
  return PartitionSpec(*spec)


def split_elsewhere(name: str, spec: list, shape: tuple[int, ...], fsdp: int) -> list:
  """Gives `fsdp` to the largest free dimension that divides, or replicates with a log line."""
  free = [dim for dim, axis in enumerate(spec) if axis is None and shape[dim] % fsdp == 0]
  if not free:
    logging.warning(
      'parameter %s %s: no dimension divides by mesh.fsdp=%d; replicated', name, shape, fsdp
    )
    return spec
  dim = max(free, key=lambda d: shape[d])
  logging.info('parameter %s %s: dimension %d takes mesh.fsdp=%d', name, shape, dim, fsdp)
  return [*spec[:dim], 'fsdp', *spec[dim + 1 :]]


def neighbours(logical: str, n: int, size: int) -> str:
  """Returns the multiples of `size` on both sides of n; a vocabulary can only grow."""
  below, above = n // size * size, (n // size + 1) * size
  return f'{below} or {above}' if below and logical != 'vocab' else f'{above}'


def largest_divisor(n: int, limit: int) -> int:
  """Returns the largest divisor of n that is at most `limit`."""
  return max(d for d in range(1, limit + 1) if n % d == 0)


def is_spec(x: object) -> bool:
  """Returns whether a node is a leaf of a model's tree of axes."""
  return isinstance(x, PartitionSpec)
