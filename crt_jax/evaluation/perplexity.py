"""Perplexity of a model on held-out text, by K parallel passes and by the exact recurrence.

The two forms are different functions of the same parameters, so every number says which one it is.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator

import jax
from ml_collections import ConfigDict

from crt_jax.models.base import Model
from crt_jax.models.loss import cross_entropy
from crt_jax.recurrence.state import jit_in_place
from crt_jax.sharding import platform_of
from crt_jax.types import AnyArray, Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums over the scored targets, in float64 on the host.

  Float32 would lose digits over a million targets.

  Attributes:
    cross_entropy: of all targets, in nats.
    targets: how many counted.
    batches: how many were scored.
    means: of each batch, its mean cross-entropy.
  """

  cross_entropy: float = 0.0
  targets: int = 0
  batches: int = 0
  means: list[float] = dataclasses.field(default_factory=list)


NOTHING = Sums()


@dataclasses.dataclass(frozen=True)
class Form:
  """One way to evaluate a model.

  Attributes:
    kind: 'parallel' passes over all positions, or the 'sequential' recurrence.
    depth: K or R; None where the model has one form of this kind.
  """

  kind: str
  depth: int | None = None

  def __post_init__(self):
    if self.kind not in ('parallel', 'sequential'):
      raise ValueError(f"form '{self.kind}' is unknown; use 'parallel' or 'sequential'")

  def is_inference_metric(self, model: Model) -> bool:
    """Returns whether a model could be used this way."""
    return self.kind == 'sequential' or model.is_usable_at(self.depth)


def trained_form(model: Model) -> Form:
  """Returns the form that validation during training uses.

  It is parallel passes if training runs them, else the exact recurrence.
  """
  return Form('parallel' if model.config.trains_in_parallel else 'sequential')


def hidden_of(model: Model, params: dict, tokens_BxT: AnyArray, form: Form) -> Array:
  """Returns hidden_BxTxC in one form, without dropout.

  `Model.loss` would use the form that training differentiates instead.
  """
  if form.kind == 'sequential':
    return model.sequential_hidden(params, tokens_BxT, form.depth)
  return model.hidden(params, tokens_BxT, form.depth).hidden_BxTxC


def forms(model: Model, config: ConfigDict) -> tuple[Form, ...]:
  """Returns the forms that `config.eval` asks for: parallel at each of its depths, then sequential.

  Args:
    config: with `eval.depths` (() = the configured depth) and `eval.sequential`.

  Raises:
    ValueError: a depth the model cannot have, or a sequential form where it has none.
  """
  depths = tuple(config.eval.depths) or (None,)
  try:
    found = [Form('parallel', model.resolve_depth(depth)) for depth in depths]
  except ValueError as error:
    raise ValueError(f'eval.depths={depths}: {error}') from None
  # Without recurrence the two kinds are one: a transformer is evaluated once.
  if config.eval.sequential and model.passes:
    try:
      jax.eval_shape(functools.partial(model.decode_state, 1, 1))
    except ValueError as error:
      raise ValueError(f'eval.sequential=True: {error}; or set eval.sequential=False') from None
    found.append(Form('sequential'))
  return tuple(dict.fromkeys(found))


def evaluate(
  model: Model,
  params: dict,
  batches: Iterable[Batch],
  depth: int | None = None,
  sequential: bool = False,
  bytes_per_token: float | None = None,
  begin: Sums = NOTHING,
  after: Callable[[Sums], None] = lambda sums: None,
) -> dict:
  """Returns the mean cross-entropy over all targets that count, each with the same weight.

  Compiled once per (model, depth, sequential, shape of a batch).

  Args:
    batches: of 'tokens' and 'targets', both [B, T], numpy or already placed on devices in any
      sharding; targets below 0 do not count.
    depth: K or R, None = configured; a CRT's sequential form accepts only None.
    sequential: the exact recurrence instead of parallel passes.
    bytes_per_token: UTF-8 bytes per target; without it bits_per_byte is None.
    begin: sums over the batches before these.
    after: called after each batch with the sums so far.

  Returns:
    'cross_entropy' in nats per target, 'perplexity' = exp of it, 'bits_per_byte', 'targets', and
    'means', the cross-entropy of each batch: of whole sets the one stretch of text after the other.

  Raises:
    ValueError: no target counts, or the model does not have this form.
  """
  sums = begin
  means = list(sums.means)
  static = ('model', 'depth', 'sequential')
  jitted = jit_in_place(_cross_entropy, platform_of(params), static)
  for mean, targets in one_behind(
    jitted(model, params, batch, depth, sequential) for batch in batches
  ):
    mean, targets = float(mean), int(targets)
    total = sums.cross_entropy + mean * targets
    means.append(mean)
    sums = Sums(total, sums.targets + targets, sums.batches + 1, means)
    after(sums)
  if sums.targets == 0:
    raise ValueError('nothing to evaluate: no batch has a target that counts')
  mean = sums.cross_entropy / sums.targets
  return {
    'cross_entropy': mean,
    'perplexity': math.exp(min(mean, 700.0)) if math.isfinite(mean) else mean,
    'bits_per_byte': bytes_per_token and mean / math.log(2) / bytes_per_token,
    'targets': sums.targets,
    'means': sums.means,
  }


def _cross_entropy(model: Model, params: Params, batch: Batch, depth: int | None, sequential: bool):
  """Returns the mean cross-entropy of one batch and its number of targets."""
  form = Form('sequential' if sequential else 'parallel', depth)
  hidden_BxTxC = hidden_of(model, params, batch['tokens'], form)
  head = functools.partial(model.head, params)
  return cross_entropy(head, hidden_BxTxC, batch['targets'], model.config.vocab_size)


def one_behind(values: Iterable) -> Iterator:
  """Yields the same values, each one only after the next is started, so the device never waits."""
  previous = None
  for value in values:
    if previous is not None:
      yield previous
    previous = value
  if previous is not None:
    yield previous
