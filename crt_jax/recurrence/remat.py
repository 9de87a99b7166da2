"""What the backward pass recomputes instead of storing it."""

from collections.abc import Callable

import jax

# Keeps the products of activations with weights, and computes anew what lies between them: norms,
# activations, rotary angles and all of attention but its projections.
KEEP_PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

Remat = bool | Callable


def rematerialised(function: Callable, remat: Remat) -> Callable:
  """`function`, the body of a scan, whose intermediate results are recomputed in the backward pass.

  Args:
    remat: False stores everything, True nothing but the arguments, a policy of
      jax.checkpoint_policies what it names.
  """
  if remat is False:
    return function
  policy = None if remat is True else remat
  # A scan separates forward and backward pass, so there is nothing to protect from merging.
  return jax.checkpoint(function, prevent_cse=False, policy=policy)
