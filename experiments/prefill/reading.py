"""Reads a prompt in different ways, and measures time and distance from the exact way."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax.decoding.prepare import empty_state
from crt_jax.models.crt import CRT
from crt_jax.types import AnyArray
from experiments.latency.machine import best_time


class Way(NamedTuple):
  """One way to read: the method, positions per chunk, and passes (None where it is exact)."""

  method: str
  chunk: int
  passes: int | None


def ways(length: int, chunks: Sequence[int], passes: Sequence[int]) -> list[Way]:
  """Returns the exact way first, then every other that differs at this length."""
  found = [Way('sequential', min(length, 64), None)]
  for count in passes:
    found.append(Way('parallel', length, count))
    found += [Way('chunked', chunk, count) for chunk in chunks if chunk < length]
  return found


def read(
  model: CRT, params: dict, tokens_BxT: AnyArray, way: Way, repeats: int
) -> tuple[dict, np.ndarray]:
  """Times one way of reading prompts of equal length.

  Returns: a record of the way and its best time, and the logits after the prompts, [B, V].
  """
  batch, length = tokens_BxT.shape
  if way.passes is not None:
    config = dataclasses.replace(model.config, depth=way.passes, depth_min=0, depth_schedule='')
    model = dataclasses.replace(model, config=config)
  tokens_BxT = jnp.asarray(tokens_BxT, jnp.int32)
  state = empty_state(model, params, batch, length)

  def run():
    options = dict(method=way.method, chunk=way.chunk)
    return model.prefill(params, state, tokens_BxT, **options)[1]

  seconds = best_time(run, repeats=repeats)
  record = dict(tokens=length, batch=batch, **way._asdict(), seconds=seconds)
  return record, np.asarray(run())


def error(logits_BxV: np.ndarray, exact_BxV: np.ndarray) -> dict:
  """Returns how far next-token distributions are from the exact ones, as a mean over prompts.

  Returns: 'max_logit_error' (of any prompt), 'kl' (nats, exact against found) and 'same_token', the
    share of prompts whose likeliest next token is the exact one.
  """
  exact, found = (jax.nn.log_softmax(jnp.asarray(a), axis=-1) for a in (exact_BxV, logits_BxV))
  kl_B = jnp.sum(jnp.exp(exact) * (exact - found), axis=-1)
  return dict(
    max_logit_error=float(np.abs(logits_BxV - exact_BxV).max()),
    kl=float(jnp.maximum(kl_B, 0).mean()),
    same_token=float(np.mean(logits_BxV.argmax(-1) == exact_BxV.argmax(-1))),
  )
