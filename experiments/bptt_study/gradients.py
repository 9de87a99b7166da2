"""How close the gradient of each estimator is to exact backpropagation through time."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

import crt_jax
from crt_jax.keys import random_key
from crt_jax.training.step import temporaries_of
from crt_jax.types import Array, Batch, Params, Tree

PARTS = ('all', 'layers', 'correction', 'embedding')


def estimators(model: dict, study: ConfigDict) -> dict[str, dict]:
  """Returns name -> fields of `model` that choose an estimator; 'exact', the reference, is first.

  Args:
    model: fields of a CRT; what is random or auxiliary in them is switched off.
    study: with tuples 'passes' (K), 'last' (k of model.depth), 'reverse' (of implicit), 'reach' (w
      of truncated), 'chunks' (c), and 'chunk_passes', their K.
  """
  depth = model['depth']
  plain = dict(depth_min=0, depth_schedule='', dropout=0.0, convergence_weight=0.0)
  plain |= dict(gradient='full', gradient_reach=0, chunk=0)
  found = {'exact': dict(driver='sequential')}
  for passes in study.passes:
    found[f'K={passes} passes'] = dict(driver='unroll', depth=passes)
  for last in study.last:
    found[f'last {last} of {depth} passes'] = dict(
      driver='unroll', gradient='last_passes', gradient_reach=last
    )
  for reverse in study.reverse:
    found[f'implicit, K={depth}, {reverse} reverse'] = dict(
      driver='unroll', gradient='implicit', gradient_reach=reverse
    )
  for reach in study.reach:
    found[f'truncated, w={reach}'] = dict(
      driver='sequential', gradient='truncated', gradient_reach=reach
    )
  for chunk in study.chunks:
    found[f'chunks c={chunk}, K={study.chunk_passes}'] = dict(
      driver='chunked', chunk=chunk, depth=study.chunk_passes
    )
  return {name: {**model, **plain, **fields} for name, fields in found.items()}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The gradient of one estimator: executable, and bytes of its temporaries."""

  run: jax.stages.Compiled
  temporary_bytes: int


def compile_gradient(fields: dict, batch: dict) -> Compiled:
  """Returns the loss and its gradient, (params, batch) -> (loss, gradient).

  Raises:
    ValueError: the fields fit no CRT, or not this many positions; nothing was compiled.
  """
  model = crt_jax.build(fields)
  model.check_length(batch['tokens'].shape[1])
  params = jax.eval_shape(model.init, random_key(0))

  def loss(params: Params, batch: Batch) -> Array:
    return model.loss(params, batch)[0]

  executable = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile()
  return Compiled(executable, temporaries_of(executable))


def compare(
  fields_of: dict[str, dict], params_of: dict, batches: list[dict], report: Callable[[str], None]
) -> dict:
  """Compares every estimator's gradient with the exact one, on the same parameters and batches.

  Args:
    fields_of: from `estimators`.
    params_of: name -> parameters, each compared for itself, as {'fresh 42': ...}.
    report: called with a line for every estimator.

  Returns: by estimator 'temporary_bytes' (of the compiled gradient: what it needs beside parameters
    and gradient), 'seconds' (median of a gradient), and by name of the parameters, one value a
    batch, 'loss' and by part of the parameters ('all', 'layers', ...) 'cosine' and 'norm_ratio',
    |g| / |exact g|.
  """
  exact, found = {}, {}
  for name, fields in fields_of.items():
    compiled = compile_gradient(fields, batches[0])
    seconds, measured = [], {}
    for of, params in params_of.items():
      rows = []
      for index, batch in enumerate(batches):
        if not seconds:
          jax.block_until_ready(compiled.run(params, batch))  # gets its memory from the system
        start = time.perf_counter()
        loss, gradient = jax.block_until_ready(compiled.run(params, batch))
        seconds.append(time.perf_counter() - start)
        gradient = jax.device_get(gradient)
        exact.setdefault((of, index), gradient)  # of the first estimator
        rows.append({'loss': float(loss)} | _alike(gradient, exact[of, index]))
      measured[of] = {key: [row[key] for row in rows] for key in rows[0]}
    found[name] = {
      'fields': {key: fields[key] for key in CHOICE},
      'temporary_bytes': compiled.temporary_bytes,
      'seconds': statistics.median(seconds),
      'measured': measured,
    }
    report(f'  {name:28} {line(found[name])}')
  return found


CHOICE = ('driver', 'depth', 'chunk', 'gradient', 'gradient_reach', 'backward')


def line(row: dict) -> str:
  """Returns one line on an estimator: its means over parameters and batches."""
  means = {
    part: statistics.fmean(x for m in row['measured'].values() for x in m[f'cosine_{part}'])
    for part in ('all', 'correction')
  }
  return (
    f'cosine {means["all"]:.4f}, of the correction {means["correction"]:.4f}; '
    f'{row["temporary_bytes"] / 2**20:.1f} MiB, {row["seconds"]:.3f} s'
  )


def flat(tree: Tree) -> np.ndarray:
  """Returns all numbers of a tree in one float64 vector."""
  return np.concatenate([np.ravel(a).astype(np.float64) for a in jax.tree.leaves(tree)])


def _alike(gradient: dict, exact: dict) -> dict:
  """Returns cosine and norm ratio of two gradients, in total and by part."""
  row = {}
  for part in PARTS:
    ours, theirs = (g if part == 'all' else g.get(part) for g in (gradient, exact))
    if ours is None:
      continue
    ours_V, theirs_V = flat(ours), flat(theirs)
    ours_norm, theirs_norm = np.linalg.norm(ours_V), np.linalg.norm(theirs_V)
    # One pass corrects nothing: there is no gradient to have an angle.
    row[f'cosine_{part}'] = float(ours_V @ theirs_V / (ours_norm * theirs_norm or 1))
    row[f'norm_ratio_{part}'] = float(ours_norm / theirs_norm)
  return row
