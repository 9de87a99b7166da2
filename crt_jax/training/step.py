"""One update of the parameters as a free function, and its compiled form.

There is one executable per depth, all compiled before step 1.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from crt_jax import sharding
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.runs import train_state as state_lib
from crt_jax.runs.train_state import TrainState
from crt_jax.training.optimizer import make_optimizer, make_schedule
from crt_jax.types import AnyArray, Array, Batch, Params, Tree

# Loss scales of a float16 model; the next one is tried if gradients overflow.
SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)


def train_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  seed: int | Array,
  accumulation: int,
  state: TrainState,
  batch: Batch,
  *,
  depth: int | None,
  telemetry: bool = False,
  own_rows: Tree = None,
  frozen: tuple[str, ...] = (),
) -> tuple[TrainState, dict[str, Array]]:
  """Returns the state after one update, and its metrics in float32.

  The metrics are loss, cross_entropy, grad_norm before clipping, and others. Randomness is
  fold_in(key(seed), step), so a step is a function of (state, batch) and a resumed run repeats it.

  Args:
    model, optimizer, schedule, seed, accumulation: fixed for a run (make_train_step binds them).
    state: the TrainState before the update.
    batch: tokens_BxT and targets_BxT, int32; target -1 does not count.
    depth: static, the number of recurrent passes, K or R; None takes the configured one.
    telemetry: static, whether the metrics hold what the model measures of its recurrence, and
      state_gradient_norm: the root mean square over slices of the norm of a slice's gradient at
      each state between the passes. The update is the same (but see on_own_rows for auxiliary
      losses of rows that count differently).
    own_rows: the specs of the parameters where each device works off its own rows by itself
      (sharding.on_own_rows); None leaves it to the compiler.
    frozen: config.optimizer.frozen, whose gradients are neither computed nor part of grad_norm.
  """
  key = jax.random.fold_in(random_key(seed), state.step)
  variables = (state.params, jnp.zeros(model.probes(depth)) if telemetry else None)

  def gradients_of(loss: Callable):
    work = functools.partial(accumulate_gradients, loss, parts=accumulation, depth=depth)
    return work if own_rows is None else sharding.on_own_rows(work, (own_rows, PartitionSpec()))

  def loss(params: Params, *rest: Any):
    held = {name: jax.lax.stop_gradient(params[name]) for name in frozen}
    return model.loss({**params, **held}, *rest)

  def gradients_at(scale: float | Array):
    (grads, squares_R), metrics = gradients_of(scaled(loss, scale))(variables, batch, key)
    squares_R = None if squares_R is None else squares_R / scale**2
    return (jax.tree.map(lambda g: g / scale, grads), squares_R), metrics

  if model.dtype == 'float16':
    (grads, squares_R), metrics = finite_gradients(gradients_at)
  else:
    (grads, squares_R), metrics = gradients_of(loss)(variables, batch, key)
  if squares_R is not None:
    metrics = metrics | {'state_gradient_norm': jnp.sqrt(squares_R)}
  with jax.named_scope('optimizer'):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = optax.tree.norm({name: g for name, g in grads.items() if name not in frozen})
  metrics = metrics | {'grad_norm': norm, 'learning_rate': schedule(state.step)}
  metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
  return TrainState(state.step + 1, params, opt_state), metrics


def scaled(loss: Callable, scale: float | Array) -> Callable:
  """Returns `Model.loss` times `scale`, with metrics that hold the unscaled loss."""

  def scaled_loss(params: Params, batch: Batch, depth: int | None, key: Array, probe_R: Array):
    value, metrics = loss(params, batch, depth, key, probe_R)
    return value * scale, {**metrics, 'loss': value}

  return scaled_loss


def finite_gradients(
  gradients_at: Callable,
) -> tuple[tuple[Params, Array | None], dict[str, Array]]:
  """Returns `gradients_at`(scale) at the largest of SCALES at which all gradients are finite.

  The gradients of a mean over many targets are too small for float16, and those of a sum too large:
  so the loss is multiplied by a power of two, and the gradients are divided by it. Nothing is
  remembered between steps, so that a step stays a function of (state, batch). Where the loss itself
  is not finite, or the last scale does not help, the gradients are returned as they are.

  Args:
    gradients_at: scale -> (gradients of the loss, anything), metrics with 'loss'.
  """

  def goes_on(carry: tuple):
    attempt, ((grads, _), metrics) = carry
    is_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
    may_help = ~is_finite & jnp.isfinite(metrics['loss']) & (attempt < len(SCALES))
    return (attempt == 0) | may_help

  def again(carry: tuple):
    attempt, _ = carry
    return attempt + 1, gradients_at(jnp.asarray(SCALES, jnp.float32)[attempt])

  shapes = jax.eval_shape(gradients_at, jax.ShapeDtypeStruct((), jnp.float32))
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.while_loop(goes_on, again, (0, nothing))[1]


def accumulate_gradients(
  loss: Callable,
  variables: tuple[Params, Array | None],
  batch: Batch,
  key: Array,
  parts: int,
  depth: int | None = None,
) -> tuple[tuple[Params, Array | None], dict[str, Array]]:
  """Returns gradients and metrics of a batch computed in `parts` equal slices of rows.

  Slices are weighted by the number of targets they count, so the cross-entropy and its gradient are
  those of the whole batch; sums are kept in float32 (float64 if the parameters are). Slice i takes
  rows i, i + parts, ... and its dropout key is fold_in(key, i).

  Args:
    loss: like `Model.loss`.
    variables: the parameters, and zeros whose gradients are statistics (probe_R) or None.
  """
  grad_of = jax.value_and_grad(loss, argnums=(0, 4), has_aux=True)
  params, probe_R = variables
  if parts == 1:
    (value, metrics), grads = grad_of(params, batch, depth, key, probe_R)
    return grads, {'loss': value, **metrics}
  slices = {name: strided_slices(rows, parts) for name, rows in batch.items()}
  first = jax.tree.map(lambda x: x[0], slices)

  def of_slice(rows: Batch, key: Array):
    return grad_of(params, rows, depth, key, probe_R)

  (_, metrics_shape), _ = jax.eval_shape(of_slice, first, key)

  def add_slice(total: Tree, indexed: tuple[Array, Batch]):
    index, rows = indexed
    (value, metrics), grads = of_slice(rows, jax.random.fold_in(key, index))
    metrics = {'loss': value, **metrics}
    targets = jnp.asarray(metrics['targets'], jnp.float32)
    part = ({**metrics, 'targets': jnp.ones(())}, grads)
    total = jax.tree.map(lambda t, x: t + (targets * x).astype(t.dtype), total, part)
    return total, None

  zeros = jax.tree.map(_accumulator, ({'loss': jnp.zeros(()), **metrics_shape}, variables))
  (metrics, grads), _ = jax.lax.scan(add_slice, zeros, (jnp.arange(parts), slices))
  counted = metrics.pop('targets')
  grads, metrics = jax.tree.map(lambda x: x / jnp.maximum(counted, 1), (grads, metrics))
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, variables)
  return grads, {**metrics, 'targets': counted}


def _accumulator(x: Array) -> Array:
  return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))


def strided_slices(rows_BxT: AnyArray, parts: int) -> Array:
  """Returns [B, T] as [parts, B / parts, T]; every device keeps its own rows."""
  batch, *rest = rows_BxT.shape
  return jnp.swapaxes(rows_BxT.reshape(batch // parts, parts, *rest), 0, 1)


def make_train_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: ConfigDict,
  abstract: TrainState,
  mesh: Mesh,
  depth: int | None = None,
  telemetry: bool = False,
) -> jax.stages.Wrapped:
  """Returns the jitted step at a depth, (state, batch) -> (state, metrics).

  It sets the shardings and donates the state.
  """
  state_shardings = state_lib.shardings_of(abstract)
  own_rows = sharding.own_row_specs(abstract.params, config.mesh.gather, mesh)
  step = functools.partial(
    train_step,
    model,
    optimizer,
    schedule,
    config.seed,
    config.train.accumulation,
    depth=depth,
    telemetry=telemetry,
    own_rows=None if telemetry else own_rows,  # statistics need all rows
    frozen=config.optimizer.frozen,
  )
  return jax.jit(
    sharding.in_mesh(mesh)(step),
    in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
    out_shardings=(state_shardings, sharding.replicated(mesh)),
    donate_argnums=0,
  )


class Steps(NamedTuple):
  """The training steps of a config, and what its state is made from.

  Attributes:
    make: (depth, telemetry) -> the jitted step (`make_train_step`).
    abstract: the TrainState's shapes and shardings.
  """

  make: Callable[..., jax.stages.Wrapped]
  optimizer: optax.GradientTransformation
  abstract: TrainState


def steps_of(config: ConfigDict, model: Model, mesh: Mesh) -> Steps:
  """Returns the training steps of a config on a mesh; nothing is compiled."""
  tx = make_optimizer(config.optimizer, model, config.train.steps)
  schedule = make_schedule(config.optimizer, config.train.steps)
  abstract = state_lib.abstract_state(model, tx, mesh)
  make = functools.partial(make_train_step, model, tx, schedule, config, abstract, mesh)
  return Steps(make, tx, abstract)


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of the global batch: int32 tokens and targets, [B, T]."""
  shape = (config.data.batch_size, config.data.sequence_length)
  x = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
  return {'tokens': x, 'targets': x}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The executables of a run, with their compile time and memory.

  Attributes:
    executables: depth (None for a transformer) -> executable.
    telemetry: the same for the steps that measure the recurrence too; {} where none does.
    memory_bytes: depth -> bytes on one device: arguments and temporaries, donated outputs once.
  """

  executables: dict
  telemetry: dict
  seconds: float
  memory_bytes: dict

  def __call__(self, depth: int | None, state: TrainState, batch: Batch, telemetry: bool = False):
    return (self.telemetry if telemetry else self.executables)[depth](state, batch)


def compile_steps(
  make_step: Callable,
  depths: Iterable[int | None],
  abstract: TrainState,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  telemetry: bool = False,
  report: Callable[[float], None] = lambda done: None,
) -> Compiled:
  """Compiles one executable per distinct depth, so that no later step waits for the compiler.

  Args:
    make_step: (depth, telemetry) -> what make_train_step returns.
    telemetry: whether some steps measure the recurrence.
    report: called with the number of finished executables, from 0.
  """
  start = time.perf_counter()
  executables, measuring = {}, {}
  for depth in depths:
    for kind, made in enumerate([executables, measuring] if telemetry else [executables]):
      report(len(executables) + len(measuring))
      made[depth] = make_step(depth, bool(kind)).lower(abstract, batch).compile()
  memory = {depth: memory_of(executable) for depth, executable in executables.items()}
  return Compiled(executables, measuring, time.perf_counter() - start, memory)


def temporaries_of(executable: jax.stages.Compiled) -> int:
  """Returns the bytes of temporaries on one device (0 if unknown)."""
  stats = executable.memory_analysis()
  return 0 if stats is None else stats.temp_size_in_bytes


def memory_of(executable: jax.stages.Compiled) -> int:
  """Returns the bytes on one device: arguments, new outputs and temporaries (0 if unknown).

  Outputs that reuse a donated argument do not count.
  """
  stats = executable.memory_analysis()
  if stats is None:
    return 0
  return int(
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
  )
