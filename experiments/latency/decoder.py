"""Times the decoding of one model at one point: batch, context, dtype, dispatch."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax import sharding
from crt_jax.decoding.loop import chunk_decoder
from crt_jax.decoding.prepare import empty_state, prepare
from crt_jax.decoding.sampling import Sampling, noise, row_keys, sample
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.recurrence.state import DecodeState, jit_in_place
from crt_jax.rounding import ceil_div
from crt_jax.schema.fields import one_of, require
from crt_jax.types import Array
from experiments.latency.launches import launches

PYTHON = 0  # a Python loop: one call for a step, one for sampling, and the token fetched each time


@dataclasses.dataclass(frozen=True)
class Point:
  """The conditions under which a model is timed.

  Attributes:
    batch: rows.
    context: positions that the caches hold before the first timed token.
    dtype: 'float32' or 'bfloat16'.
    dispatch: tokens per compiled call, or PYTHON.
  """

  batch: int = 1
  context: int = 1
  dtype: str = 'float32'
  dispatch: int = 64

  def __post_init__(self):
    for name in ('batch', 'context'):
      require(getattr(self, name) >= 1, f'{name}={getattr(self, name)} must be at least 1')
    require(self.dispatch >= 0, f'dispatch={self.dispatch} must be 0 (Python loop) or more')
    one_of('dtype', self.dtype, ('float32', 'bfloat16'))

  @property
  def call_tokens(self) -> int:
    """The tokens per row of one timed call."""
    return max(1, self.dispatch)


class Decoder:
  """A model with random parameters, ready to be timed.

  Attributes:
    launches: kernels per token of the compiled program; 0 where it is not one program.
  """

  def __init__(
    self,
    model: Model,
    params: dict,
    point: Point,
    capacity: int,
    sampling: Sampling,
    options: dict[str, Any] | None = None,
  ):
    """Compiles with `options`; `capacity` is the context and all tokens that will be timed."""
    self.point, self._params = point, params
    self.model, self._sampling, self._capacity = model, sampling, capacity
    self._key_B = row_keys(0, jnp.arange(point.batch))
    self.reset()
    self.launches = 0
    if point.dispatch == PYTHON:
      self._call = self._python_step
    else:
      arguments = (model, sampling, point.dispatch, params, self._key_B, *self._state)
      decode = chunk_decoder(sharding.platform_of(params))
      compiled = decode.lower(*arguments).compile(compiler_options=options)
      # What happens once per call, before and after the tokens, is shared by them.
      self.launches = round(launches(compiled.as_text() or '') / point.dispatch)
      self._call = functools.partial(compiled, params, self._key_B)

  def reset(self) -> None:
    """Empties the caches and sets their position to `context`."""
    self._state: Sequence[Any] = ()  # frees the memory first
    point = self.point
    state = empty_state(self.model, self._params, point.batch, self._capacity)
    position_B = jnp.full(point.batch, point.context, jnp.int32)
    logits_BxV = jnp.zeros((point.batch, self.model.config.vocab_size), jnp.float32)
    self._state = (dataclasses.replace(state, position_B=position_B), logits_BxV)

  def time(self, tokens: int) -> list[float]:
    """Returns seconds per token (of all rows together) of each call, continuing the text."""
    seconds = []
    for _ in range(ceil_div(tokens, self.point.call_tokens)):
      start = time.perf_counter()
      *self._state, tokens_BxN = self._call(*self._state)
      np.asarray(tokens_BxN)
      seconds.append((time.perf_counter() - start) / self.point.call_tokens)
    return seconds

  def _python_step(self, state: DecodeState, logits_BxV: Array):
    token_B = _sample(self._sampling, logits_BxV, self._key_B, state.position_B)
    np.asarray(token_B)
    step = jit_in_place(Model.step, sharding.platform_of(token_B), ('self',), ('state',))
    state, logits_BxV = step(self.model, self._params, state, token_B)
    return state, logits_BxV, token_B[:, None]

  def first_token(self, method: str) -> float:
    """Returns seconds from a prompt of `context` tokens to its first token, without compiling."""
    point = self.point
    tokens_BxT = np.zeros((point.batch, point.context), np.int32)

    def run():
      state = empty_state(self.model, self._params, point.batch, self._capacity)
      jax.block_until_ready(state)
      start = time.perf_counter()
      state, logits_BxV = self.model.prefill(
        self._params, state, tokens_BxT, method=method, chunk=min(64, point.context)
      )
      np.asarray(_sample(self._sampling, logits_BxV, self._key_B, state.position_B))
      return time.perf_counter() - start

    run()
    return run()

  def draw(self, tokens: int = 64) -> float:
    """Returns the seconds to draw one token per row from finished logits; best of three."""
    logits_BxV = jnp.zeros((self.point.batch, self.model.config.vocab_size), jnp.float32)

    def run():
      start = time.perf_counter()
      jax.block_until_ready(_draws(self._sampling, tokens, logits_BxV, self._key_B))
      return (time.perf_counter() - start) / tokens

    run()
    return min(run() for _ in range(3))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draws(sampling: Sampling, tokens: int, logits_BxV: Array, key_B: Array):
  """Draws several tokens, each from logits that depend on the one before, so none is merged."""
  position_NxB = jnp.broadcast_to(jnp.arange(tokens)[:, None], (tokens, key_B.shape[0]))
  noise_NxB = jax.vmap(noise, (None, 0))(key_B, position_NxB)

  def one(logits_BxV: Array, noise_B: Array):
    token_B = sample(sampling, logits_BxV, noise_B)
    return logits_BxV + 1e-6 * token_B[:, None], token_B

  return jax.lax.scan(one, logits_BxV, noise_NxB)


_sample = jax.jit(
  lambda sampling, logits_BxV, *where: sample(sampling, logits_BxV, noise(*where)), static_argnums=0
)


@functools.lru_cache(maxsize=1)
def random_params(model: Model, dtype: str) -> tuple:
  """Returns the model in that dtype with small random parameters, prepared; keeps no copies.

  Rows of one model and dtype share the last ones: compiling them takes as long as the decoding.
  """
  model, shapes = (
    dataclasses.replace(model, config=dataclasses.replace(model.config, dtype=dtype)),
    jax.eval_shape(model.init, random_key(0)),
  )
  make = jax.jit(lambda: prepare(model, jax.tree.map(varied, shapes))[1])
  return model, make()


def varied(shape: jax.ShapeDtypeStruct) -> jax.Array:
  """Returns varied numbers of both signs; their values do not affect the time."""
  indices = jax.lax.iota(jnp.uint32, shape.size) * jnp.uint32(2654435761)
  return ((indices >> 8).astype(jnp.float32) / 2**24 - 0.5).reshape(shape.shape) / 10


def alternate(timers: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[float]]:
  """Runs each timer once per round, so that a slow minute of the machine affects all."""
  found = {name: [] for name in timers}
  for _ in range(rounds):
    for name, timer in timers.items():
      found[name] += timer()
  return found
