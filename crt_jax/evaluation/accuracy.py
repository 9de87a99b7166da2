"""How often the most likely token is the target, for tasks whose answers stand at known places."""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from crt_jax.evaluation.perplexity import Form, hidden_of
from crt_jax.models.base import Model
from crt_jax.recurrence.state import jit_in_place
from crt_jax.sharding import platform_of
from crt_jax.types import Array, Batch, Params

SOLVED = 0.9  # a group counts as solved above this share (crt.md 11.3)


def accuracy(
  model: Model, params: dict, batches: Iterable[Batch], groups: Mapping[str, np.ndarray], form: Form
) -> dict:
  """Returns the share of right answers in each group of positions.

  Args:
    batches: as `evaluate` takes them; targets below 0 do not count.
    groups: name -> positions of its targets.
    form: which function of the parameters is asked.

  Returns: 'accuracy_NAME' of every group, in order, and 'solved', how many are above 0.9.

  Raises:
    ValueError: a group without a target that counts.
  """
  positions = np.concatenate(list(groups.values()))
  right_P, counted_P = np.zeros(len(positions), np.int64), np.zeros(len(positions), np.int64)
  jitted = jit_in_place(_answers, platform_of(params), ('model', 'form'))
  for batch in batches:
    right, counted = jitted(model, params, batch, jnp.asarray(positions), form)
    right_P += np.asarray(right)
    counted_P += np.asarray(counted)
  found, first = {}, 0
  for name, members in groups.items():
    here = slice(first, first + len(members))
    first += len(members)
    if not counted_P[here].sum():
      raise ValueError(f'nothing to evaluate: {name} has no target that counts')
    found[f'accuracy_{name}'] = float(right_P[here].sum() / counted_P[here].sum())
  return found | {'solved': sum(share > SOLVED for share in found.values())}


def _answers(model: Model, params: Params, batch: Batch, positions_P: Array, form: Form):
  """Returns the number of correct rows, and of rows that count, at each position."""
  hidden_BxTxC = hidden_of(model, params, batch['tokens'], form)
  logits_BxPxV = model.head(params, hidden_BxTxC[:, positions_P])
  targets_BxP = batch['targets'][:, positions_P]
  counted_BxP = targets_BxP >= 0
  right_BxP = counted_BxP & (jnp.argmax(logits_BxPxV, axis=-1) == targets_BxP)
  return jnp.sum(right_BxP, axis=0), jnp.sum(counted_BxP, axis=0)
