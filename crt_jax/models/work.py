"""How often a training step runs each part of a model: what gradients, drivers and drawn depths do
to the FLOPs that accounting.py counts."""

import types
from typing import NamedTuple


class Work(NamedTuple):
  """How often a part runs.

  Attributes:
    forward: forward passes.
    backward: backward passes, each of twice the products of a forward pass.
    pulled: backward passes without the gradient of the weights.
  """

  forward: float = 1
  backward: float = 1
  pulled: float = 0


def of_parts(fields: types.SimpleNamespace, training: bool, sequential: bool) -> dict[str, Work]:
  """Name of a part -> `Work`; parts that are missing run once."""
  if fields.name == 'crt' and not (sequential or fields.driver == 'sequential'):
    return _of_passes(fields, training)
  if fields.name == 'cart' and fields.backprop_loops:
    return {'core': Work(1, min(fields.backprop_loops / fields.loops, 1))}
  return {}


def _of_passes(fields: types.SimpleNamespace, training: bool) -> dict[str, Work]:
  """Of K parallel passes over a sequence, or over each chunk of it.

  There are K - 1 corrections between the passes, one before them with start='corrected', and one
  behind them where something reads x^(K+1) or the next chunk the summary. Where the network is in
  the summary, the first input needs none.
  """
  depth, reach = fields.depth, fields.gradient_reach
  in_summary = fields.correction in ('token_blind', 'delta_ffn')
  behind = fields.correction == 'px' or (training and fields.convergence_weight > 0)
  behind |= in_summary and training and fields.driver == 'chunked'
  corrections = depth - 1 + behind + (fields.start == 'corrected' and not in_summary)
  if fields.gradient == 'last_passes' and reach < depth:
    # The first of the last passes starts from a correction that has a gradient.
    last = Work(corrections, reach - 1 + behind + (not in_summary))
    return {'layers': Work(depth, reach), 'correction': last}
  if fields.gradient == 'implicit':  # the last pass, the fixed point's, and the reverse passes
    fixed = Work(corrections, 1 + behind, reach - 1)
    return {'layers': Work(depth, 2, reach - 1), 'correction': fixed}
  return {'layers': Work(depth, depth), 'correction': Work(corrections, corrections)}
