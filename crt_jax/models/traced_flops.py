"""Counts the floating-point operations of the matrix products in a traced program.

The body of a loop counts as often as it runs; XLA's own count takes it once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval


def traced_flops(function: Callable, *args: Any) -> int:
  """Returns 2 x multiply-accumulates of every matrix product that `function(*args)` computes.

  What a backward pass recomputes counts again; what nothing reads does not count, since XLA removes
  it. Kernels that are not XLA products (cuDNN, Pallas) are not seen.

  Args:
    args: arrays or ShapeDtypeStructs; nothing is computed.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  read, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _flops(read)


def _flops(jaxpr: jax.extend.core.Jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      left: Any = equation.invars[0].aval
      out: Any = equation.outvars[0].aval
      total += 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    elif name == 'cond':
      total += max(_flops(branch.jaxpr) for branch in params['branches'])
    else:
      times = params['length'] if name == 'scan' else 1
      total += times * sum(map(_flops, jaxprs_in_params(params)))
  return total
