"""Evaluation protocols: a paper's sample of each validation set, and the whole set.

'random' is the CRT paper's sample (crt.md, 8.4): `eval.batches` batches of random windows by
`eval.seed`, the same for all models of one T and batch size. 'first' is CART's (cart.md, 5.4): the
first `eval.windows` windows in file order. The windows of the whole do not overlap and score each
token once; of a long set only the beginning is scored ('leading'), so that the evaluation stays
small beside the training. Numbers of different samples, or of one sample at different T, cannot be
compared.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from crt_jax import data
from crt_jax.evaluation.accuracy import accuracy
from crt_jax.evaluation.jacobian import jacobian
from crt_jax.evaluation.ledger import Ledger
from crt_jax.evaluation.perplexity import NOTHING, Form, Sums, evaluate, forms, trained_form
from crt_jax.models import attention_choice
from crt_jax.models.base import Model
from crt_jax.placing import ON_ONE_DEVICE, Placement
from crt_jax.rounding import ceil_div
from crt_jax.types import Batch

FEWEST = 2**20  # sets of at most so many targets are always scored whole
SLOW = 30.0  # seconds of a batch, in which compiling is a small part
SHARE = 0.1  # of the training's tokens: the limit for all forms of a longer set together


@dataclasses.dataclass(frozen=True)
class Part:
  """One validation set in one form.

  Attributes:
    kind: 'sampled' or 'whole', the list of results in which its record stands.
    set: name of the validation set.
    form: how the model is used.
    protocol: 'random', 'first', 'whole' or 'leading', the beginning of a long set.
    batches: how many are scored.
    tokens: how many they have.
  """

  kind: str
  set: str
  form: Form
  protocol: str
  batches: int
  tokens: int

  @property
  def name(self) -> str:
    return f'{self.kind} {self.set} {self.form.kind} {self.form.depth}'


def plan(model: Model, dataset: data.Dataset, config: ConfigDict) -> list[Part]:
  """Returns the parts of the final evaluation, in their order.

  Raises:
    ValueError: a set cannot be scored as config.eval asks.
  """
  length, rows = _shape(config)
  asked, parts = forms(model, config), []
  is_random = config.eval.sample == 'random'
  sample = config.eval.batches if is_random else ceil_div(config.eval.windows, rows)
  for name in dataset.validation_sets:
    for form in asked:
      parts.append(Part('sampled', name, form, config.eval.sample, sample, sample * rows * length))
  if config.eval.whole:
    most = ceil_div(most_tokens(config, len(asked)), rows * length)
    for name, packed in dataset.validation_sets.items():
      _whole(packed, config, None)  # raises for generated data, which has no whole
      assert isinstance(packed, data.PackedDataset)
      tokens = len(packed.validation) - 1
      batches = ceil_div(tokens, rows * length)
      protocol = 'whole' if batches <= most else 'leading'
      scored = min(tokens, most * rows * length)
      parts += [Part('whole', name, form, protocol, min(batches, most), scored) for form in asked]
  return parts


def most_tokens(config: ConfigDict, forms: int) -> int:
  """Returns how many tokens of a validation set each form scores at most."""
  trained = config.train.steps * config.data.batch_size * config.data.sequence_length
  return config.eval.whole_tokens or max(FEWEST, int(SHARE * trained / forms))


def rehearse(
  model: Model,
  params: dict,
  dataset: data.Dataset,
  config: ConfigDict,
  place: Placement,
  report: Callable[[float], None],
) -> dict[Form, float]:
  """Scores one batch in every form, to compile all programs and to allocate their memory early.

  A failure then comes before any training is lost.

  Args:
    report: gets the share that is done.

  Returns: seconds that a batch takes in each form.
  """
  jacobians(model, params, dataset, config)
  model, seconds = scoring_model(model, config), {}
  packed = next(iter(dataset.validation_sets.values()))
  batch = next(iter(map(place, _sample(packed, config, 1, place.rows))))
  tried = list(dict.fromkeys([trained_form(model), *forms(model, config)]))
  for i, form in enumerate(tried):
    report(i / len(tried))
    for _ in range(2):  # the first one compiles
      since = time.perf_counter()
      _evaluate(model, params, form, [batch], packed)
      seconds[form] = time.perf_counter() - since
      # Clocks differ between processes, which all have to run the same programs.
      if seconds[form] > SLOW and jax.process_count() == 1:
        break
  return seconds


def protocol(
  model: Model,
  params: dict,
  dataset: data.Dataset,
  config: ConfigDict,
  place: Placement = ON_ONE_DEVICE,
  ledger: Ledger | None = None,
) -> dict:
  """Scores every validation set, its sample and the whole of it, in every requested form.

  Args:
    dataset: from `data.prepare`.
    config: the run's config; `forms` and config.eval say what to evaluate.
    place: which rows of a batch this process reads, and how they come onto its devices.
    ledger: knows what was done before; None begins anew.

  Returns:
    A dict ready for JSON: 'sampled' and, if `eval.whole`, 'whole', each a list of one record per
    validation set and form: 'set', 'protocol' ('random', 'first', 'whole' or 'leading'), 'form',
    'depth', 'is_inference_metric' and what `evaluate` returns; 'jacobian', where it is asked for,
    what `jacobians` returns; and 'data', what a sample depends on.
  """
  ledger = ledger or Ledger()
  measured = ledger.part('jacobian', lambda *_: jacobians(model, params, dataset, config))
  model = scoring_model(model, config)
  sets, results = dataset.validation_sets, {}

  def score(part: Part, begin: Sums, after: Callable[[Sums], None]) -> dict:
    packed = sets[part.set]
    if part.kind == 'whole':
      batches = _whole(packed, config, place.rows)
    else:
      batches = _sample(packed, config, part.batches, place.rows)
    left = map(place, itertools.islice(batches, begin.batches, part.batches))
    return _score(model, params, part.form, left, packed, begin=begin, after=after)

  for part in plan(model, dataset, config):
    record = ledger.part(part.name, functools.partial(score, part))
    named = {'set': part.set, 'protocol': part.protocol}
    results.setdefault(part.kind, []).append(named | record)
  if measured:
    results['jacobian'] = measured
  results['data'] = {
    'sequence_length': config.data.sequence_length,
    'batch_size': config.data.batch_size,
    'batches': config.eval.batches,
    'seed': config.eval.seed,
    'windows': config.eval.windows,
    'dtype': model.config.dtype,
    'bytes_per_token': {
      name: packed.bytes_per_token('validation') for name, packed in sets.items()
    },
  }
  return results


def during_training(
  model: Model, params: dict, dataset: data.Dataset, config: ConfigDict, place: Placement
) -> dict[str, dict]:
  """Scores the sample of every validation set in the form that is trained.

  Returns:
    Name of the set -> what `evaluate` returns, and its Jacobian where that is asked for.
  """
  measured = jacobians(model, params, dataset, config)
  model = scoring_model(model, config)
  form, found = trained_form(model), {}
  for name, packed in dataset.validation_sets.items():
    batches = _sample(packed, config, config.eval.during_training_batches, place.rows)
    found[name] = _evaluate(model, params, form, map(place, batches), packed)
    found[name] |= measured.get(name, {})
  return found


def jacobians(
  model: Model, params: dict, dataset: data.Dataset, config: ConfigDict
) -> dict[str, dict]:
  """Returns the Jacobian of the last pass or loop over the first scored window.

  In float32 at least, whatever eval.dtype says: power iteration in 16 bits measures their rounding.
  Without a fused attention kernel, which has no forward derivative.

  Returns:
    Name of the set -> what `jacobian` returns; {} where eval.jacobian_iterations is 0.
  """
  iterations, found = config.eval.jacobian_iterations, {}
  if not iterations:
    return found
  dtype = 'float64' if model.config.dtype == 'float64' else 'float32'
  model = type(model)(dataclasses.replace(model.config, dtype=dtype, attention_kernel='xla'))
  for name, packed in dataset.validation_sets.items():
    tokens_1xT = _first_window(packed, config)['tokens']
    measured = jax.device_get(jacobian(model, params, tokens_1xT, iterations=iterations))
    found[name] = {what: float(value) for what, value in measured.items()}
  return found


def scoring_model(model: Model, config: ConfigDict) -> Model:
  """Returns the model in `eval.dtype` if that is set, else unchanged.

  CART was trained in bfloat16 and scored in float32 (cart.md, 2.9). If the attention kernel cannot
  run in that dtype, 'xla' computes the same.
  """
  fields = model.config
  kernel = fields.attention_kernel
  # The kernel is removed first, since a fused one may not support the dtype.
  fields = dataclasses.replace(
    fields, dtype=config.eval.dtype or fields.dtype, attention_kernel='xla'
  )
  if attention_choice.fits(fields, kernel):
    fields = dataclasses.replace(fields, attention_kernel=kernel)
  return type(model)(fields)


def _score(
  model: Model,
  params: dict,
  form: Form,
  batches: Iterable[Batch],
  packed: data.ValidationSet,
  **progress: Any,
) -> dict:
  described = {
    'form': form.kind,
    'depth': form.depth,
    'is_inference_metric': form.is_inference_metric(model),
  }
  return described | _evaluate(model, params, form, batches, packed, **progress)


def _evaluate(
  model: Model,
  params: dict,
  form: Form,
  batches: Iterable[Batch],
  packed: data.ValidationSet,
  begin: Sums = NOTHING,
  **progress: Any,
) -> dict:
  """Returns what `evaluate` returns, and the accuracy if answers stand at known places."""
  bytes_per_token = packed.bytes_per_token('validation')
  arguments = (form.depth, form.kind == 'sequential', bytes_per_token)
  if not packed.answer_groups:
    return evaluate(model, params, batches, *arguments, begin=begin, **progress)
  batches = list(batches)
  found = accuracy(model, params, batches, packed.answer_groups, form)
  return evaluate(model, params, batches, *arguments) | found


def _sample(
  packed: data.ValidationSet, config: ConfigDict, random_batches: int, rows: np.ndarray | None
) -> Iterable[data.Batch]:
  """Returns these rows of the windows that `eval.sample` names."""
  if config.eval.sample == 'first':
    return data.first_validation(packed, *_shape(config), config.eval.windows, rows)
  return data.sampled_validation(packed, *_shape(config), random_batches, config.eval.seed, rows)


def _first_window(packed: data.ValidationSet, config: ConfigDict) -> dict:
  """Returns the same one row on every process."""
  length = config.data.sequence_length
  if config.eval.sample == 'first':
    return next(iter(data.first_validation(packed, length, 1, 1)))
  return data.sampled_validation(packed, length, 1, 1, config.eval.seed)[0]


def _whole(
  packed: data.ValidationSet, config: ConfigDict, rows: np.ndarray | None
) -> Iterable[data.Batch]:
  return data.whole_validation(packed, *_shape(config), rows)


def _shape(config: ConfigDict) -> tuple[int, int]:
  return config.data.sequence_length, config.data.batch_size
