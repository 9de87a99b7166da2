"""Which checkpoints of a run are kept: the newest, the best, and one with a finite loss."""

import json
import math
import pathlib
from collections.abc import Sequence

from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.checkpoint_managers import PreservationContext


def policy(keep: int) -> policies.PreservationPolicy:
  """Returns the policy: keep the newest `keep`, the lowest validation loss, the last finite one."""
  best = policies.BestN(
    get_metric_fn=cross_entropy, reverse=True, n=1, keep_checkpoints_without_metrics=False
  )
  return policies.AnyPreservationPolicy([policies.LatestN(keep), best, LastProven()])


def cross_entropy(metrics: dict) -> float:
  """Returns the validation cross-entropy, lower is better; NaN is the worst."""
  value = metrics['cross_entropy']
  return value if math.isfinite(value) else math.inf


class LastProven(policies.PreservationPolicy):
  """Keeps the newest checkpoint whose loss is known to be finite.

  The loss was measured, or training went on past that step.
  """

  def should_preserve(
    self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: PreservationContext
  ) -> Sequence[bool]:
    del context
    measured = [c.metrics is not None and cross_entropy(c.metrics) < math.inf for c in checkpoints]
    last = len(checkpoints) - (1 if measured and measured[-1] else 2)
    return [index == last for index in range(len(checkpoints))]


def has_damaged_metrics(checkpoint: pathlib.Path) -> bool:
  """Returns whether the number that ranks a checkpoint cannot be read.

  Without it no checkpoint manager opens, although the checkpoint itself may be complete.
  """
  try:
    metrics = json.loads((checkpoint / 'metrics' / 'metrics').read_text('utf-8'))
    return not isinstance(metrics['cross_entropy'], float)
  except FileNotFoundError:
    return False
  except (ValueError, KeyError, TypeError):
    return True
