"""The contract that every model implements: initialisation, loss, parallel passes and decoding.

Shape letters, used in names (`x_BxTxC`) and, in lower case, in einsums:
  B batch, T positions, S attended positions (cache slots), C width, H query heads, G key/value
  heads, A head width, F feed-forward width, Z latent width, V vocabulary, N layers, K passes,
  R loops.

A model is a frozen configuration plus pure functions of its parameters; it is hashable, so it can
be a static argument of jit. `depth` is a static int, the number of recurrent passes (K or R); None
takes the configured one.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from crt_jax.keys import random_key
from crt_jax.models.config import RecurrentPasses
from crt_jax.models.counts import Part, Work
from crt_jax.models.inputs import (
  check_lengths,
  check_positions,
  check_room,
  check_tokens,
  is_traced,
  nan_past_the_end,
  none_past_the_end,
  padded_with_zeros,
)
from crt_jax.models.loss import cross_entropy
from crt_jax.models.traced_flops import traced_flops
from crt_jax.recurrence.passes import Recurrence
from crt_jax.recurrence.state import DecodeState, jit_in_place, take_position, unshared
from crt_jax.rounding import ceil_div
from crt_jax.schema import ModelConfig
from crt_jax.schema.fields import one_of, require
from crt_jax.sharding import platform_of
from crt_jax.types import AnyArray, Array, Batch, Params

Fields = TypeVar('Fields', bound=ModelConfig)
PREFILL_METHODS = ('sequential', 'parallel', 'chunked')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
  """What `hidden` returns: hidden states before the final norm, weighted losses, statistics."""

  hidden_BxTxC: Array
  losses: dict[str, Array]
  telemetry: dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
  """What `apply` returns: the logits, and the hidden states they were computed from."""

  logits_BxTxV: Array
  hidden: Hidden


@dataclasses.dataclass(frozen=True)
class Model(abc.ABC, Generic[Fields]):
  """Base class of all models: a subclass defines parameters, forward passes and decoding."""

  Config: ClassVar[type[ModelConfig]]
  passes: ClassVar[RecurrentPasses | None] = None  # None: no recurrence
  config: Fields

  @property
  def dropout(self) -> float:
    """The dropout rate of training; at 0 a training step draws no random numbers."""
    return self.config.dropout

  @property
  def dtype(self) -> str:
    """The dtype that the model computes in; with 'float16' training scales the loss."""
    return self.config.dtype

  @property
  def stacked(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
    """Paths of stacked layer parameters, and of their caches; decoding unstacks both."""
    return {}

  # ---- what a model defines ------------------------------------------------------------------

  @abc.abstractmethod
  def init(self, key: Array) -> dict:
    """Returns new parameters: a nested dict of arrays in `config.param_dtype`."""

  @abc.abstractmethod
  def axes(self) -> dict:
    """Returns the tree of `init` with a PartitionSpec of logical axis names at each leaf."""

  @abc.abstractmethod
  def hidden(
    self,
    params: Params,
    tokens_BxT: AnyArray,
    depth: int | None = None,
    key: Array | None = None,
    telemetry: bool = False,
    probe_R: Array | None = None,
  ) -> Hidden:
    """Returns the residual stream before the final norm, by parallel passes.

    Args:
      telemetry: whether to return statistics of the recurrence.
      probe_R: zeros [self.probes(depth)]: statistics too, and in their gradient the squared norms
        of the loss's gradient at the states between the passes.
    """

  @abc.abstractmethod
  def head(self, params: dict, hidden: Array) -> Array:
    """Applies final norm and output layer: hidden [..., C] -> logits [..., V], at least float32."""

  @abc.abstractmethod
  def decode_state(self, batch: int, max_len: int, depth: int | None = None) -> DecodeState:
    """Returns an empty decoding state for `batch` rows of up to `max_len` positions.

    Its dtypes follow config.dtype; float64 parameters under a float32 configuration widen it at the
    first call of `prefill` or `step`, so scan `step` from a state that one of them returned.
    """

  @abc.abstractmethod
  def advance(
    self,
    params: dict,
    state: DecodeState,
    tokens_BxT: AnyArray,
    lengths_B: Array | None,
    method: str,
  ) -> tuple[DecodeState, Array]:
    """Consumes the first lengths_B tokens of each row; returns the new state and hidden_BxTxC.

    lengths_B=None consumes all tokens, which must fit into the state. `hidden_BxTxC` has every
    position.
    """

  def parts(self, params: dict) -> Any:
    """Returns the model's pure component functions, closed over `params`, for studies.

    Raises:
      ValueError: it names none.
    """
    raise ValueError(f'model.name={self.config.name!r} has no parts; give it `parts`')

  # ---- what it costs -------------------------------------------------------------------------

  @classmethod
  def counts(cls, fields: Fields) -> dict[str, Part]:
    """Returns the components of a model with these fields by name: 'embedding', 'head', others.

    Counted from the arrays of `init` and the products of `hidden` at one position, which leaves
    attention out; a model with formulas gives them (models/counts.py).
    """
    model = cls(cls.Config(**vars(fields)))
    params = jax.eval_shape(model.init, random_key(0))
    token_1x1 = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    flops = traced_flops(lambda p, t: model.hidden(p, t).hidden_BxTxC, params, token_1x1)
    sizes = {name: sum(a.size for a in jax.tree.leaves(part)) for name, part in params.items()}
    table, head = sizes.pop('embedding', 0), sizes.pop('head', 0)
    stored = sum(sizes.values())
    return {
      'embedding': Part(vectors=table),
      'head': Part(matrices=head),
      'body': Part(vectors=stored, borrowed=flops // 2),
    }

  @staticmethod
  def work(fields: Fields, training: bool, sequential: bool) -> dict[str, Work]:
    """Returns how often each component runs in a step; a component that is missing runs once."""
    del fields, training, sequential
    return {}

  # ---- depth ---------------------------------------------------------------------------------

  def resolve_depth(self, depth: int | None) -> int | None:
    """Returns the number of recurrent passes for `depth`; None for a model without recurrence."""
    require(depth is None, f'depth={depth}: a transformer has no recurrent passes; use depth=None')
    return None

  def depths(self) -> tuple[int, ...] | None:
    """Returns the distinct depths that training can draw; None without recurrence."""
    return None

  @property
  def has_sequential_form(self) -> bool:
    """Whether `sequential`, `decode_state` and `step` exist."""
    return True

  @property
  def max_positions(self) -> int:
    """The longest sequence that learned position embeddings allow; 0 if there is no limit."""
    return 0

  @property
  def recurs_along_sequence(self) -> bool:
    """Whether each position reads the output of the position before it.

    If so, parallel passes and the exact recurrence differ, and a prompt can be read by either.
    """
    return False

  def recurrence(self, params: dict) -> Recurrence:
    """Returns the functions that the drivers of recurrence/passes.py alternate.

    Raises:
      ValueError: the model has no recurrence along the sequence.
    """
    raise ValueError(f'model.name={self.config.name!r} has no recurrence along the sequence')

  def is_usable_at(self, depth: int | None) -> bool:
    """Returns whether parallel passes at this depth are a meaningful way to use the model."""
    del depth
    return True

  def recurrent_map(self, params: dict, tokens_BxT: AnyArray, depth: int | None = None) -> tuple:
    """Returns the last recurrent pass over a text as a map from its state to the next state.

    Returns: step (state -> state), the state before the last of `depth` passes, and the axes over
      which a position's state extends where positions do not depend on each other, else None.
    Raises:
      ValueError: the model has no recurrence.
    """
    raise ValueError(f'model.name={self.config.name!r} has no recurrent passes to analyse')

  def probes(self, depth: int | None = None) -> int:
    """Returns the number of states between passes at which `hidden` can measure a gradient."""
    del depth
    return 0

  def _probe(self, depth: int | None, telemetry: bool, probe_R: Array | None) -> Array | None:
    """Returns `probe_R`, or zeros in its place if statistics are wanted without gradients."""
    return jnp.zeros(self.probes(depth)) if telemetry and probe_R is None else probe_R

  def depth_at(self, seed: int, step: int) -> int | None:
    """Returns the training depth of a step, a pure function of (seed, step) on every process."""
    del seed, step
    return None

  def decayed(self) -> dict:
    """Returns the tree of `init` with False at parameters that the loss never reads.

    Those of a switched-off component, for example. An optimiser that skips missing gradients leaves
    them alone, so weight decay must too.
    """
    return jax.tree.map(lambda spec: True, self.axes())

  # ---- what follows from it ------------------------------------------------------------------

  @property
  def training_hidden(self) -> Callable[..., Hidden]:
    """The function that `loss` differentiates: `hidden`, unless config.driver selects another."""
    return self.hidden

  def check_length(self, length: int) -> list[str]:
    """Returns remarks on training with sequences of `length`; ValueError if it is impossible."""
    check_positions(length, self.max_positions)
    return []

  def check_telemetry(self) -> None:
    """Raises ValueError if `loss` cannot report statistics of a recurrence."""
    require(
      self.passes,
      f'model.name={self.config.name!r} has no recurrence to measure; set train.telemetry_every=0',
    )

  def loss(
    self,
    params: Params,
    batch: Batch,
    depth: int | None = None,
    key: Array | None = None,
    probe_R: Array | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the mean cross-entropy plus auxiliary losses, and the metrics.

    Args:
      batch: 'tokens' and 'targets', both [B, T] and aligned; a target below 0 does not count. An
        id outside the vocabulary makes the loss NaN, or raises ValueError where it is known.
      key: dropout key, or None for none.
      probe_R: asks for statistics of the recurrence, see `hidden`.

    Returns: the total, and metrics: 'cross_entropy' (nats per counted target), 'targets' (how many
      counted), each auxiliary term and each statistic by name.
    """
    check_tokens(batch['targets'], self.config.vocab_size, lowest=-math.inf)
    if probe_R is not None:
      self.check_telemetry()
    hidden = self.training_hidden(params, batch['tokens'], depth, key, probe_R=probe_R)
    head = functools.partial(self.head, params)
    config, targets_BxT = self.config, batch['targets']
    mean, count = cross_entropy(
      head, hidden.hidden_BxTxC, targets_BxT, config.vocab_size, config.loss_chunk_mib
    )
    metrics = {'cross_entropy': mean, 'targets': count, **hidden.losses, **hidden.telemetry}
    return mean + sum(hidden.losses.values()), metrics

  def apply(
    self, params: Params, tokens_BxT: AnyArray, depth: int | None = None, key: Array | None = None
  ) -> Output:
    """Returns the logits of every position by parallel passes, for tests and small uses."""
    hidden = self.hidden(params, tokens_BxT, depth, key)
    return Output(self.head(params, hidden.hidden_BxTxC), hidden)

  def each_pass(
    self, params: Params, tokens_BxT: AnyArray, depth: int | None = None
  ) -> list[Output]:
    """Returns the output after 1, 2, ... `depth` passes of a CRT or loops of a CART.

    Each output holds hidden states, and the logits that the model's own head makes of them (a logit
    lens). Each is computed from the beginning.

    Raises:
      ValueError: the model has no passes, `depth` is none of its depths, or a token is outside the
        vocabulary.
    """
    check_tokens(tokens_BxT, self.config.vocab_size)
    require(self.passes, f'model.name={self.config.name!r} has no recurrent passes; use apply')
    last = self.resolve_depth(depth)
    assert last is not None
    return [_jitted_apply(self, params, tokens_BxT, d) for d in range(1, last + 1)]

  def sequential(self, params: Params, tokens_BxT: AnyArray, depth: int | None = None) -> Array:
    """Returns logits_BxTxV of the exact recurrence, by one scan over positions."""
    check_tokens(tokens_BxT, self.config.vocab_size)
    is_nested = is_traced(tokens_BxT, *jax.tree.leaves(params))
    platform = None if is_nested else platform_of(params)
    jitted = jit_in_place(Model._sequential, platform, ('self', 'depth'))
    return jitted(self, params, tokens_BxT, depth)

  def _sequential(self, params: Params, tokens_BxT: AnyArray, depth: int | None) -> Array:
    return self.head(params, self.sequential_hidden(params, tokens_BxT, depth))

  def sequential_hidden(
    self, params: Params, tokens_BxT: AnyArray, depth: int | None = None
  ) -> Array:
    """Returns hidden_BxTxC of the exact recurrence."""
    batch, length = tokens_BxT.shape
    check_positions(length, self.max_positions)
    state = self.decode_state(batch, length, depth).widened(_stream_dtype(params))
    return self.advance(params, state, tokens_BxT, None, 'sequential')[1]

  def step(
    self, params: Params, state: DecodeState, token_B: AnyArray
  ) -> tuple[DecodeState, Array]:
    """Consumes one token per row; returns the new state and the logits_BxV of the next token.

    It reads all slots of the caches, unless `seeing` has said how long the text is at most.

    Raises:
      ValueError: the state is full, or a token outside the vocabulary; under jit, where neither can
        be known, the row's logits are NaN from there on.
    """
    state = state.widened(_stream_dtype(params))
    check_room(state, 1, self.max_positions)
    token_B = none_past_the_end(state, token_B, self.max_positions)
    state, hidden_Bx1xC = self.advance(params, state, token_B[:, None], None, 'sequential')
    return state, self.head(params, hidden_Bx1xC[:, 0])

  def prefill(
    self,
    params: Params,
    state: DecodeState,
    tokens_BxT: AnyArray,
    lengths_B: AnyArray | None = None,
    method: str = 'sequential',
    chunk: int = 64,
    donate: bool = False,
  ) -> tuple[DecodeState, Array]:
    """Consumes one prompt per row, padded on the right.

    Args:
      lengths_B: how many tokens of each row count, 0 to T; None = all. A row of length 0
        keeps its state, and its logits mean nothing.
      method: 'sequential' (exact), 'chunked' (K passes per chunk) or 'parallel' (K passes over the
        whole prompt). Without recurrence along the sequence all three are the same forward pass.
      chunk: positions per compiled call; the prompt is padded to a multiple, or for 'parallel' to a
        power of two times it, so that its length causes no compilation of its own.
      donate: whether the state may be written in place, and is not used again; else it is copied
        once.

    Returns: the state after the prompts, and logits_BxV after each row's last token.

    Raises:
      ValueError: lengths that do not fit, a token outside the vocabulary; under jit, where that
        cannot be known, the row's logits are NaN.
    """
    one_of('method', method, PREFILL_METHODS)
    batch, length = tokens_BxT.shape
    require(length >= 1, 'the prompt is empty; give at least one token')
    require(chunk >= 1, f'chunk={chunk} must be at least 1')
    if lengths_B is None:
      lengths_B = np.full(batch, length, np.int32)
    lengths_B = lengths_B if is_traced(lengths_B) else np.asarray(lengths_B)
    check_lengths(lengths_B, batch, length)
    check_room(state, lengths_B, self.max_positions)
    state = state.widened(_stream_dtype(params))
    if method == 'parallel':
      chunk *= 2 ** max(0, ceil_div(length, chunk) - 1).bit_length()
    count = ceil_div(length, chunk)
    tokens_BxT = padded_with_zeros(tokens_BxT, lengths_B, count * chunk)
    check_tokens(tokens_BxT, self.config.vocab_size)
    last_BxC = jnp.zeros((batch, self.config.width), _stream_dtype(params))
    is_nested = is_traced(tokens_BxT, lengths_B, *jax.tree.leaves((params, state)))
    prefill_chunk = _chunk_prefiller(None if is_nested else platform_of(params))
    if not is_nested:
      state = unshared(state) if donate else jax.tree.map(jnp.copy, state)
    begin = 0 if is_nested else int(np.asarray(state.position_B).max())
    for j in range(count):
      if not is_nested:
        state = self.seeing(state, begin + min((j + 1) * chunk, int(lengths_B.max())))
      tokens_Bxc = tokens_BxT[:, j * chunk : (j + 1) * chunk]
      rest_B = lengths_B - j * chunk
      state, last_BxC = prefill_chunk(self, params, state, tokens_Bxc, rest_B, last_BxC, method)
    state = dataclasses.replace(state, seen=None)
    if is_traced(lengths_B):
      exist_B = (lengths_B >= 0) & (lengths_B <= length)
      last_BxC = jnp.where(exist_B[:, None], last_BxC, jnp.nan)
    return state, self._jitted_head(params, last_BxC)

  def seeing(self, state: DecodeState, end: int) -> DecodeState:
    """Returns `state.seeing`; the state itself for a kernel that reads only the slots it needs."""
    return state.seeing(end) if self.config.decode_kernel == 'xla' else state

  @functools.partial(jax.jit, static_argnames='self')
  def _jitted_head(self, params: Params, hidden_BxC: Array):
    return self.head(params, hidden_BxC)

  def _prefill_chunk(
    self,
    params: Params,
    state: DecodeState,
    tokens_Bxc: Array,
    rest_B: Array,
    last_BxC: Array,
    method: str,
  ):
    chunk = tokens_Bxc.shape[1]
    new_B = jnp.clip(rest_B, 0, chunk)
    state, hidden_BxcxC = self.advance(params, state, tokens_Bxc, new_B, method)
    ends_BxC = take_position(hidden_BxcxC, jnp.maximum(new_B - 1, 0))
    ends_BxC = nan_past_the_end(state, ends_BxC, self.max_positions)
    return state, jnp.where(new_B[:, None] > 0, ends_BxC, last_BxC)


def _chunk_prefiller(platform: str | None):
  """Returns `Model._prefill_chunk`, jitted for a platform."""
  return jit_in_place(Model._prefill_chunk, platform, ('self', 'method'), ('state',))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _jitted_apply(model: Model, params: Params, tokens_BxT: AnyArray, depth: int) -> Output:
  return model.apply(params, tokens_BxT, depth)


def _stream_dtype(params: dict):
  """Returns the dtype of the residual stream: float64 if any parameter is, else float32."""
  return jnp.result_type(jnp.float32, *{a.dtype for a in jax.tree.leaves(params)})
