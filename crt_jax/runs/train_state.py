"""The state of a training run: step, parameters and optimiser state, sharded from the start."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from crt_jax import sharding
from crt_jax.convert import warm_start
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.types import Array, Params, Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """The whole state of training; data and randomness are functions of (seed, step)."""

  step: Tree  # int32 scalar, the number of updates done
  params: Tree
  opt_state: Tree

  @property
  def evaluated(self) -> Params:
    """The parameters to score and load: their moving average, if the optimiser keeps one."""
    return exchanged(self).params


class AverageState(NamedTuple):
  """The state of `moving_average`."""

  count: Array
  params_average: Any


def moving_average(decay: float) -> optax.GradientTransformation:
  """Keeps an exponential moving average of the parameters; leaves updates unchanged.

  Update n keeps the smaller of `decay` and (n - 1) / (n + 8) of the average before: the initial
  parameters are forgotten at once, and a short run has an average of its own length.
  """

  def init(params: Any) -> AverageState:
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(updates: Any, state: Any, params: Any = None):
    count = state.count + 1
    new_share = 1 - jnp.minimum(decay, (count - 1) / (8 + count))
    updated = optax.apply_updates(params, updates)
    average = optax.incremental_update(updated, state.params_average, new_share)
    return updates, AverageState(count, average)

  return optax.GradientTransformation(init, update)


def exchanged(state: TrainState) -> TrainState:
  """Returns the state with the parameters and their moving average exchanged.

  A checkpoint holds them like that. Without an average the state itself is returned.
  """
  average = optax.tree.get(state.opt_state, 'params_average')
  if average is None:
    return state
  opt_state = optax.tree.set(state.opt_state, params_average=state.params)
  return TrainState(state.step, average, opt_state)


def abstract_state(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """Returns the state's shapes, dtypes and shardings, without allocating or compiling anything.

  Args:
    model: a model of the contract (models/base.py); its axes() decide how each parameter is
      sharded.
    optimizer: moments are sharded as the parameters they belong to, everything else is replicated.
    mesh: a Mesh or an AbstractMesh.

  Raises:
    ValueError: a parameter does not fit the mesh (see sharding.py).
  """
  params = jax.eval_shape(model.init, random_key(0))
  param_shardings = sharding.param_shardings(model.axes(), params, mesh)
  replicated = sharding.replicated(mesh)
  opt_state = jax.eval_shape(optimizer.init, params)
  opt_shardings = optax.tree.map_params(
    optimizer.init,
    lambda x, s: x if _is_masked(x) else s,
    opt_state,
    param_shardings,
    transform_non_params=lambda _: replicated,
    is_leaf=_is_masked,
  )
  state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state)
  shardings = TrainState(replicated, param_shardings, opt_shardings)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
  )


def init_state(
  model: Model,
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
  seed: int,
  source: tuple[Model, Params] | None = None,
) -> TrainState:
  """Initialises the state directly in its shards, so no device holds more than its part.

  Args:
    source: a trained model and its parameters to begin with (convert/warm_start.py); None: drawn.
  """

  def init(key: Array, given: Params):
    params = model.init(key) if source is None else warm_start.begin(model, source[0], given, key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  jitted = jax.jit(
    init, out_shardings=shardings_of(abstract), compiler_options=quick_compile(abstract)
  )
  return jitted(random_key(seed), source and source[1])


def with_new_optimizer(
  optimizer: optax.GradientTransformation, abstract: TrainState
) -> Callable[[Params, int], TrainState]:
  """Returns (params, step) -> the state of that step with a new optimiser state.

  The learning rate continues its schedule.
  """

  def begin(params: Params, step: int) -> TrainState:
    count = jnp.asarray(step, jnp.int32)
    opt_state = jax.tree.map(
      lambda x: x._replace(count=count) if _is_schedule(x) else x,
      optimizer.init(params),
      is_leaf=_is_schedule,
    )
    return TrainState(count, params, opt_state)

  jitted = jax.jit(
    begin,
    static_argnums=1,
    out_shardings=shardings_of(abstract),
    compiler_options=quick_compile(abstract),
  )
  return jitted


def _is_masked(x: object) -> bool:
  """Returns whether a part of the optimiser leaves a parameter to another part."""
  return isinstance(x, optax.MaskedNode)


def _is_schedule(x: object) -> bool:
  return isinstance(x, optax.ScaleByScheduleState)


def quick_compile(placed: Tree = None) -> dict | None:
  """Returns compiler options for what runs once on the platform of `placed`.

  An init compiles in 3 s instead of 10 on two cores, with the same bits.
  """
  is_cpu = sharding.platform_of(placed) == 'cpu'
  return {'xla_backend_optimization_level': 1} if is_cpu else None


def shardings_of(abstract: Tree) -> Tree:
  """Returns the tree of shardings of a tree of ShapeDtypeStructs."""
  return jax.tree.map(lambda x: x.sharding, abstract)
