"""A trained model at other numbers of recurrent passes: other R of a CART (cart.md 8.5), other K of
a CRT."""

from collections.abc import Callable

from crt_jax import data
from crt_jax.evaluation.perplexity import Form, evaluate


def depth_sweep(
  model, params: dict, dataset, config, depths: list[int], windows: int, report: Callable
) -> dict:
  """Perplexity on the validation set at each depth.

  Args:
    depths: R or K; the first mistake among them is reported before anything is computed.
    windows: how many windows of T tokens, from the start; 0 = the whole set.
    report: called with every record as it is made.

  Returns:
    A dict ready for JSON: 'trained_depths' and 'whole', one record a depth, as in `protocol`.

  Raises:
    ValueError: the model has no recurrent passes or cannot have one of the depths.
  """
  if model.depths() is None:
    raise ValueError(f'model.name={config.model.name!r} has no recurrent passes to vary')
  forms = [Form('parallel', model.resolve_depth(depth)) for depth in dict.fromkeys(depths)]
  length = config.data.sequence_length
  batch_size = min(config.data.batch_size, windows or config.data.batch_size)
  records = []
  for form in forms:
    batches = data.whole_validation(dataset, length, batch_size)
    if windows:
      batches = (batch for _, batch in zip(range(-(-windows // batch_size)), batches, strict=False))
    found = evaluate(
      model,
      params,
      batches,
      form.depth,
      bytes_per_token=dataset.bytes_per_token('validation'),
    )
    described = {'form': form.kind, 'depth': form.depth}
    described['is_inference_metric'] = form.is_inference_metric(model)
    records.append(described | found)
    report(records[-1])
  return {'trained_depths': list(model.depths()), 'whole': records}
