"""A bare training step to be timed, and alternating timing of several sides."""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from absl import flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.types import Batch, Params

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Alternations between the sides.', lower_bound=1)
THREADS = flags.DEFINE_integer('threads', 2, 'Threads that PyTorch uses; JAX uses all cores.')
PEER = flags.DEFINE_bool('peer', True, 'Whether to time PyTorch too.')


def training_step(
  model: Model,
  optimizer: optax.GradientTransformation,
  tokens: np.ndarray,
  targets: np.ndarray,
  devices: int = 1,
) -> tuple[Callable[[], float], str]:
  """Returns one update of clipped gradients by `optimizer`, compiled.

  Args:
    tokens, targets: int32, [B, T]; all targets count.
    devices: each works off its share of the rows by itself; gradients are averaged once, at the
      end (`shard_map`). Sharded by `jit` they would be summed in every turn of the model's loop.

  Returns: a function that runs a step and returns its loss, and the text of the compiled program.
  """
  mesh = jax.make_mesh((devices,), ('data',), (AxisType.Auto,), devices=jax.devices()[:devices])
  everywhere, rows = PartitionSpec(), PartitionSpec('data')
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
  params = jax.jit(model.init)(random_key(0))
  carry = jax.device_put((params, optimizer.init(params)), NamedSharding(mesh, everywhere))
  batch = jax.device_put(dict(tokens=tokens, targets=targets), NamedSharding(mesh, rows))

  def gradient(params: Params, batch: Batch):
    (loss, _), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, batch)
    return (loss, gradient) if devices == 1 else jax.lax.pmean((loss, gradient), 'data')

  if devices > 1:
    # Without check_vma the gradient of replicated parameters stays that of the device's own rows.
    specs = dict(in_specs=(everywhere, rows), out_specs=everywhere)
    gradient = jax.shard_map(gradient, mesh=mesh, **specs, check_vma=False)

  def update(carry: tuple[Params, optax.OptState], batch: Batch):
    params, state = carry
    loss, grads = gradient(params, batch)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  compiled = jax.jit(update, donate_argnums=0).lower(carry, batch).compile()

  def step() -> float:
    nonlocal carry
    carry, loss = compiled(carry, batch)
    return float(loss)

  return step, compiled.as_text() or ''


def in_turns(sides: dict[str, Callable]) -> dict[str, list[float]]:
  """Returns seconds of every side, timed in turns.

  A turn is one run that is not timed, in which the side gets its memory back from the others, and
  one that is.
  """
  seconds = {name: [] for name in sides}
  for _ in range(ROUNDS.value):
    for name, run in sides.items():
      run()
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
  """Returns the median of every side."""
  return {name: statistics.median(found) for name, found in seconds.items()}
