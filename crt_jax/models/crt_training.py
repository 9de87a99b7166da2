"""The functions that a CRT's loss differentiates for each driver and gradient (docs/bptt.md).

The table TRAINED in crt.py selects one; plain unrolled passes are `CRT.hidden` itself.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from crt_jax.models.base import Hidden
from crt_jax.recurrence import estimators, passes
from crt_jax.recurrence.backward import LOOPS, Loop
from crt_jax.recurrence.passes import Recurrence
from crt_jax.recurrence.state import varying_as
from crt_jax.schema import CRTConfig
from crt_jax.schema.fields import require
from crt_jax.types import Array, Params

if TYPE_CHECKING:
  from crt_jax.models.crt import CRT


def hidden(
  trained: Callable,
  model: 'CRT',
  params: Params,
  tokens_BxT: Array,
  depth: int | None = None,
  key: Array | None = None,
  probe_R: Array | None = None,
) -> Hidden:
  """Returns what `CRT.hidden` returns, computed by one of the functions below."""
  model.check_length(tokens_BxT.shape[1])
  if probe_R is not None:
    model.check_telemetry()
  embed_key, key = (None, None) if key is None else jax.random.split(key)
  e_BxTxC = model.embed(params, tokens_BxT, embed_key)
  # Inside a shard_map this makes gradients of parameters be summed over devices only once.
  recurrence = model.recurrence(varying_as(e_BxTxC, params))
  return trained(model, recurrence, e_BxTxC, depth, key)


def _loop(config: CRTConfig, stride: int) -> Loop:
  """Returns the loop over a sequence, `stride` positions a step, that the config selects."""
  loop = LOOPS[config.backward]
  if config.gradient != 'truncated':
    return loop
  return estimators.truncated(loop, config.gradient_reach // stride)


def sequential(
  model: 'CRT', recurrence: Recurrence, e_BxTxC: Array, depth: int | None, key: Array | None
) -> Hidden:
  """Backpropagates through the exact recurrence."""
  require(depth is None, f'depth={depth}: the sequential driver is exact; use depth=None')
  state, loop = model.training_state(e_BxTxC), _loop(model.config, 1)
  _, hidden_BxTxC = passes.sequential(recurrence, model.read, state, e_BxTxC, None, key, loop)
  return Hidden(hidden_BxTxC, {}, {})


def chunks(
  model: 'CRT', recurrence: Recurrence, e_BxTxC: Array, depth: int | None, key: Array | None
) -> Hidden:
  """Runs K passes over each chunk."""
  config, state = model.config, model.training_state(e_BxTxC)
  _, found = passes.chunked(
    recurrence,
    model.read_with_gap,
    state,
    e_BxTxC,
    None,
    config.chunk,
    model.resolve_depth(depth),
    config.start,
    key,
    _loop(config, config.chunk),
  )
  return model.with_convergence_loss(*found)


def last_passes(
  model: 'CRT', recurrence: Recurrence, e_BxTxC: Array, depth: int | None, key: Array | None
) -> Hidden:
  """Backpropagates through the last passes only."""
  depth, last = model.resolve_depth(depth), model.config.gradient_reach
  done = estimators.last_passes(recurrence, e_BxTxC, depth, last, model.config.start, key)
  return model.with_convergence_loss(*model.read_with_gap(done))


def implicit(
  model: 'CRT', recurrence: Recurrence, e_BxTxC: Array, depth: int | None, key: Array | None
) -> Hidden:
  """Takes the gradient of a fixed point, which dropout would not have."""
  del key
  depth, reverse = model.resolve_depth(depth), model.config.gradient_reach
  done = estimators.implicit(recurrence, e_BxTxC, depth, reverse, model.config.start)
  return model.with_convergence_loss(*model.read_with_gap(done))
