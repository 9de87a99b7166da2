"""How far K parallel passes are from the exact recurrence, position by position (crt.md 3.1)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax.models.base import Model
from crt_jax.models.crt import CRT
from crt_jax.recurrence.passes import Passes, one_pass, unroll
from crt_jax.recurrence.state import jit_in_place
from crt_jax.sharding import platform_of
from crt_jax.types import Array, Params

FLOOR = 1e-5  # relative gap below which a position counts as exact: float32 rounding, with room


def against_exact(model: Model, params: Params, batch: dict, passes: int) -> dict:
  """Compares the parallel passes k = 1..K of a CRT with its exact recurrence, without dropout.

  Args:
    batch: 'tokens' and 'targets' [B, T]; rows are worked off one at a time.
    passes: K, how many are compared.

  Returns: [B, K, T] 'gap', |h^(k) - h| / |h| of what the head reads, 'change', the largest
    |x^(k+1) - x^(k)| of a position, and 'cross_entropy', nats; [B, T] 'exact_cross_entropy'.

  Raises:
    ValueError: the model has no recurrence along the sequence, or no sequential form.
  """
  jitted = jit_in_place(_against_exact, platform_of(params), ('model', 'passes'))
  return jitted(model, params, batch, passes)


def _against_exact(model: CRT, params: Params, batch: dict, passes: int) -> dict:
  recurrence, nobody = model.recurrence(params), (None,) * 3
  norm = functools.partial(jnp.linalg.norm, axis=-1)

  def nats(hidden_1xTxC: Array, targets_T: Array):
    logits_TxV = model.head(params, hidden_1xTxC)[0]
    picked_T = jnp.take_along_axis(logits_TxV, targets_T[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits_TxV, axis=-1) - picked_T

  def one_row(row: tuple[Array, Array]):
    tokens_1xT, targets_T = row[0][None], row[1]
    e_1xTxC = model.embed(params, tokens_1xT)
    exact_1xTxC = model.sequential_hidden(params, tokens_1xT)

    def one(x_1xTxC: Array, _: None):
      z, s, x_next = one_pass(recurrence, e_1xTxC, x_1xTxC, None, nobody)[:3]
      hidden_1xTxC = model.read(Passes(z, x_1xTxC, x_next, s, {}, {}))
      return x_next, {
        'gap': norm(hidden_1xTxC - exact_1xTxC)[0] / norm(exact_1xTxC)[0],
        'change': jnp.abs(x_next - x_1xTxC).max(axis=-1)[0],
        'cross_entropy': nats(hidden_1xTxC, targets_T),
      }

    start_1xTxC = unroll(recurrence, e_1xTxC, 1, model.config.start).x_BxTxC
    _, found = jax.lax.scan(one, start_1xTxC, length=passes)
    return found | {'exact_cross_entropy': nats(exact_1xTxC, targets_T)}

  return jax.lax.map(one_row, (batch['tokens'], batch['targets']))


def summary(found: dict, edges: list[int], trained: int) -> dict:
  """Returns what `against_exact` found, as a record for JSON.

  Args:
    edges: of the stretches of positions that are averaged over, ascending, from 0 to T.
    trained: positions that the model was trained with; whole-sequence numbers count no others.

  Returns:
    By pass and stretch: 'gap' and 'gap_max', mean and largest relative gap; 'perplexity'. By
    stretch: 'exact_perplexity'; 'passes_until_exact', mean over positions of the first pass from
    which the gap stays below 1e-5, of K + 1 where none does, and 'unfinished', the share of those.
    Of the trained positions: 'whole_perplexity' by pass, 'whole_exact_perplexity',
    'whole_passes_until_exact' (of the last position to become exact; None if one does not),
    'ratio', of successive largest changes by pass from 2 on.
  """
  found = {name: np.asarray(a, np.float64) for name, a in found.items()}
  gap, nats, exact = found['gap'], found['cross_entropy'], found['exact_cross_entropy']
  passes = gap.shape[1]
  first = first_exact(gap)
  stretches = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
  whole = slice(0, trained)
  last = first[:, whole].max()
  change_K = found['change'][:, :, whole].max(axis=2).mean(axis=0)
  return {
    'gap': [gap[:, :, at].mean(axis=(0, 2)).tolist() for at in stretches],
    'gap_max': [gap[:, :, at].max(axis=(0, 2)).tolist() for at in stretches],
    'perplexity': [np.exp(nats[:, :, at].mean(axis=(0, 2))).tolist() for at in stretches],
    'exact_perplexity': [math.exp(exact[:, at].mean()) for at in stretches],
    'passes_until_exact': [first[:, at].mean() for at in stretches],
    'unfinished': [(first[:, at] > passes).mean() for at in stretches],
    'whole_perplexity': np.exp(nats[:, :, whole].mean(axis=(0, 2))).tolist(),
    'whole_exact_perplexity': math.exp(exact[:, whole].mean()),
    'whole_passes_until_exact': int(last) if last <= passes else None,
    'ratio': (change_K[1:] / np.maximum(change_K[:-1], np.finfo(np.float32).tiny)).tolist(),
  }


def first_exact(gap_BxKxT: np.ndarray) -> np.ndarray:
  """Returns the first pass from which every gap is below 1e-5, [B, T]; K + 1 if there is none."""
  is_far = gap_BxKxT >= FLOOR
  passes = gap_BxKxT.shape[1]
  last_far = passes - np.argmax(is_far[:, ::-1], axis=1)
  return np.where(is_far.any(axis=1), last_far + 1, 1)


def edges_of(length: int, trained: int) -> list[int]:
  """Returns stretches of positions: powers of two to 1/8 of the trained length, then eighths."""
  step = max(1, trained // 8)
  edges = [0]
  edges += [2**i for i in range(step.bit_length()) if 2**i < step]
  edges += list(range(step, length, step))
  return [*edges, length]
