"""What is scored: the sample of each validation set that a paper scores, and the whole of it.

'random' is the CRT paper's sample (crt.md, 8.4): `eval.batches` batches of random windows by
`eval.seed`, the same for all models of one T and batch size. 'first' is CART's (cart.md, 5.4): the
first `eval.windows` windows in file order. The windows of the whole do not overlap and score each
token once. Numbers of different samples, or of one sample at different T, cannot be compared.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np

from crt_jax import data
from crt_jax.evaluation.accuracy import accuracy
from crt_jax.evaluation.jacobian import jacobian
from crt_jax.evaluation.perplexity import Form, evaluate, forms, trained_form
from crt_jax.models import kernels
from crt_jax.placing import ON_ONE_DEVICE, Placement

SAMPLES = ('random', 'first')
DTYPES = ('', 'float32', 'bfloat16', 'float16')


def protocol(model, params: dict, dataset, config, place: Placement = ON_ONE_DEVICE) -> dict:
  """Scores every validation set, its sample and the whole of it, in every form wanted.

  Args:
    dataset: from `data.prepare`.
    config: the run's config; `forms` and config.eval say what to evaluate.
    place: which rows of a batch this process reads, and how they come onto its devices.

  Returns:
    A dict ready for JSON: 'sampled' and, if `eval.whole`, 'whole', each a list of one record per
    validation set and form: 'set', 'protocol' ('random', 'first' or 'whole'), 'form', 'depth',
    'is_inference_metric' and what `evaluate` returns; 'jacobian', where it is asked for, what
    `jacobians` returns; and 'data', what a sample depends on.
  """
  measured = jacobians(model, params, dataset, config)
  model = scoring_model(model, config)
  asked = forms(model, config)
  sets = dataset.validation_sets

  def records(protocol: str, batches_of: Callable) -> list[dict]:
    return [
      {'set': name, 'protocol': protocol}
      | _score(model, params, form, map(place, batches_of(packed)), packed)
      for name, packed in sets.items()
      for form in asked
    ]

  results = {
    'sampled': records(
      config.eval.sample, lambda packed: _sample(packed, config, config.eval.batches, place.rows)
    )
  }
  if config.eval.whole:
    results['whole'] = records('whole', lambda packed: _whole(packed, config, place.rows))
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


def during_training(model, params: dict, dataset, config, place: Placement) -> dict[str, dict]:
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


def jacobians(model, params: dict, dataset, config) -> dict[str, dict]:
  """The Jacobian of the last pass or loop of the trained depth over the first window scored.

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


def scoring_model(model, config):
  """The model in `eval.dtype`, where that is set: CART was trained in bfloat16 and scored in
  float32 (cart.md, 2.9). Where its attention kernel cannot run, 'xla' computes the same."""
  fields = model.config
  kernel = fields.attention_kernel
  # Without a kernel first: a fused one may refuse the dtype.
  fields = dataclasses.replace(
    fields, dtype=config.eval.dtype or fields.dtype, attention_kernel='xla'
  )
  if kernels.fits(fields, kernel):
    fields = dataclasses.replace(fields, attention_kernel=kernel)
  return type(model)(fields)


def _score(model, params: dict, form: Form, batches: Iterable[dict], packed) -> dict:
  described = {
    'form': form.kind,
    'depth': form.depth,
    'is_inference_metric': form.is_inference_metric(model),
  }
  return described | _evaluate(model, params, form, batches, packed)


def _evaluate(model, params: dict, form: Form, batches: Iterable[dict], packed) -> dict:
  """What `evaluate` returns, and the accuracy where answers stand at known places."""
  bytes_per_token = packed.bytes_per_token('validation')
  arguments = (form.depth, form.kind == 'sequential', bytes_per_token)
  if not packed.answer_groups:
    return evaluate(model, params, batches, *arguments)
  batches = list(batches)
  found = accuracy(model, params, batches, packed.answer_groups, form)
  return evaluate(model, params, batches, *arguments) | found


def _sample(packed, config, random_batches: int, rows: np.ndarray | None) -> Iterable[dict]:
  """These rows of the windows that `eval.sample` names."""
  if config.eval.sample == 'first':
    return data.first_validation(packed, *_shape(config), config.eval.windows, rows)
  return data.sampled_validation(packed, *_shape(config), random_batches, config.eval.seed, rows)


def _first_window(packed, config) -> dict:
  """The same one row on every process."""
  length = config.data.sequence_length
  if config.eval.sample == 'first':
    return next(iter(data.first_validation(packed, length, 1, 1)))
  return data.sampled_validation(packed, length, 1, 1, config.eval.seed)[0]


def _whole(packed, config, rows: np.ndarray | None) -> Iterable[dict]:
  return data.whole_validation(packed, *_shape(config), rows)


def _shape(config) -> tuple[int, int]:
  return config.data.sequence_length, config.data.batch_size
