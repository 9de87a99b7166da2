"""A trained model as the start of a run: with fewer layers, a correction or another dtype."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from crt_jax import data, schema, storage
from crt_jax.convert import warm_start
from crt_jax.keys import random_key
from crt_jax.loading import Trained
from crt_jax.models import device_defaults
from crt_jax.models.registry import build
from crt_jax.models.transformer import Transformer
from crt_jax.runs import checkpoint, workdir
from crt_jax.runs.provenance import origin
from crt_jax.runs.train_state import TrainState
from crt_jax.schema.fields import require
from crt_jax.types import Params


def fields_of_some(fields: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
  """Returns `config.model` reduced to `layers`, () = all; ValueError for a missing layer."""
  fields = dict(fields)
  if layers:
    count = fields.get('layers', 0)
    require(
      count > max(layers), f'keep_layers names layer {max(layers)}; the model has {count}, from 0'
    )
    fields['layers'] = len(layers)
  return fields


def params_of_some(params: Params, layers: Sequence[int]) -> Params:
  """Returns the parameters reduced to `layers`, () = all."""
  if not layers:
    return params
  return params | dict(layers=jax.tree.map(lambda a: a[np.array(layers)], params['layers']))


def converted(
  trained: Trained,
  layers: Sequence[int] = (),
  correction: str = '',
  dtype: str = '',
  around: ConfigDict | None = None,
) -> Trained:
  """Returns the model with some of its layers, with a correction, or in another dtype.

  Args:
    layers: those that are kept, in order; () = all.
    correction: of models/corrections.py, new and silent (convert/warm_start.py); '' = none.
    dtype: of `config.model`; '' = as it is.
    around: a config whose sections, except the model's, take the place of the present ones.

  Raises:
    ValueError: a layer that it does not have, or a model that cannot become a CRT.
  """
  fields = fields_of_some(trained.config.model, layers)
  params = params_of_some(trained.params, layers)
  fields['dtype'] = dtype or fields['dtype']
  model = build(fields, jax.devices()[0])
  params = jax.tree.map(lambda a: jnp.asarray(a, model.config.param_dtype), params)
  config = (trained.config if around is None else around).copy_and_resolve_references()
  config.unlock()
  if correction:
    require(
      isinstance(model, Transformer),
      f'--correction={correction} begins as a transformer; the source is a {fields["name"]}',
    )
    source, fields = model, dict(warm_start.corrected(model.config, correction))
    model = build(fields, jax.devices()[0])
    warm_start.check(model, source)
    params = warm_start.begin(model, source, params, random_key(config.seed))
    config.eval.sequential = True
  config.model = ConfigDict(fields)
  config.lock()
  return dataclasses.replace(trained, model=model, params=params, config=config, step=0)


def begin_run(path: str, trained: Trained) -> None:
  """Writes a work directory at step 0, complete or not at all.

  It has no optimiser state: training starts from it by train.init_from.

  Args:
    path: does not exist.
    trained: of `converted`; `config.data.tokenizer` names what its tokenizer is read from.

  Raises:
    ValueError: the data cannot be read, or in other tokens.
    OSError: the directory cannot be written.
  """
  config = schema.check(trained.config).copy_and_resolve_references()
  dataset = data.prepare(config.data)
  require(
    dataset.tokenizer.hash == trained.tokenizer.hash,
    f'data.tokenizer={config.data.tokenizer!r} is not the tokenizer of the model',
  )
  dataset.check_vocabulary(config.model.vocab_size)
  trained.model.check_length(config.data.sequence_length)
  if config.data.tokenizer not in ('bytes', 'bpe'):
    config.data.tokenizer = str(pathlib.Path(path).absolute() / 'tokenizer')
  record = {
    'config': workdir.plain(config),
    'origin': origin(),
    'data': dataset.identity,
    'begins_with': None,
    'computed_as': device_defaults.decided(trained.model.config),
    'training_seconds': 0.0,
  }
  with storage.written_whole(path) as scratch:
    directory = workdir.Workdir(scratch)
    workdir.begin(directory, config)
    trained.tokenizer.save(directory.folder('tokenizer'))
    checkpoints = checkpoint.Checkpoints(scratch, keep=1)
    try:
      checkpoints.save(TrainState(jnp.zeros((), jnp.int32), trained.params, {}), record)
      checkpoints.wait()
    finally:
      checkpoints.close()
