"""The study of backpropagation through the recurrence: gradients compared, models fine-tuned.

Each piece has a file of its own, so that the same command continues where it stopped:

  base.json, base.npz    a model trained by parallel passes, and its parameters
  gradients.json         every estimator's gradient against the exact one, fresh and trained
  NAME.json              the model fine-tuned in one way, evaluated
  results.json, *.png, *.svg    all of them
"""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

import crt_jax
from crt_jax import data, json_text
from crt_jax.keys import random_key
from crt_jax.runs import workdir
from crt_jax.runs.provenance import origin
from crt_jax.training import startup
from crt_jax.training.terminal import show_any_text
from experiments.bptt_study import figures, gradients, page
from experiments.study import vmapped_seeds
from experiments.study.variants import print_row, summary


def run(config: ConfigDict, path: str, only: tuple[str, ...] = ()) -> None:
  """Makes every piece that has no file yet, then results, table and figures.

  Args:
    config: configs/bptt_study.py, with `study`.
    only: names of pieces, 'base', 'gradients' or those of config.study.fine_tuning; () = all.

  Raises:
    ValueError: the config is no such study, a piece is unknown or wrong, or the directory holds
      results of another config or text; nothing was compiled.
  """
  show_any_text()
  folder, identity = pathlib.Path(path), workdir.plain(config)
  names = check(config, only)
  folder.mkdir(parents=True, exist_ok=True)
  pieces = {}
  for name in names:
    file = folder / f'{name}.json'
    if file.exists():
      pieces[name] = workdir.read_json(file)
      saved = of_piece(pieces[name]['study_config'], name)
      if workdir.changed_fields(saved, of_piece(identity, name)):
        raise ValueError(f'{file} is of another config; use a new --workdir')
      text = (config if name == 'gradients' else tuning_config(config, name)).data
      saved = pieces[name].get('data', {})  # older pieces do not say
      data.check_identity(str(file), saved, data.prepare(text).identity)
    elif not only or name in only:
      piece = make(name, config, folder)
      pieces[name] = {'study_config': identity, 'origin': origin(), **piece}
      json_text.write(file, pieces[name])
  if 'gradients' in pieces:
    draw(folder, pieces['gradients'], 'gradients')
  if len(pieces) < len(names):
    print(f'{len(pieces)} of {len(names)} pieces are done')
    return
  tuned = {name: piece for name, piece in pieces.items() if name != 'gradients'}
  record = {'study': 'fine_tuning', 'pieces': tuned, 'origin': origin()}
  json_text.write(folder / 'results.json', record | {'gradients': pieces['gradients']})
  draw(folder, record, 'fine_tuning')
  print(f'finished; everything is in {folder}')


def of_piece(identity: dict, name: str) -> dict:
  """Returns the part of a study's config that one piece depends on.

  Other ways of fine-tuning are left out, so that a study may grow.
  """
  ways = identity['study']['fine_tuning']
  own = {way: changes for way, changes in ways.items() if way == name}
  return identity | {'study': identity['study'] | {'fine_tuning': own}}


def check(config: ConfigDict, only: tuple[str, ...]) -> list[str]:
  """Returns the names of all pieces, after building their models without compiling."""
  if 'study' not in config or 'fine_tuning' not in config.study:
    raise ValueError('--config is no study of gradients; use configs/bptt_study.py')
  names = ['base', 'gradients', *config.study.fine_tuning]
  for name in only:
    if name not in names:
      raise ValueError(f'--only={name}: the study has {", ".join(names)}')
  length = config.data.sequence_length
  for name in names:
    if name == 'gradients':
      fields = gradients.estimators(model_fields(config), config.study).values()
    else:
      tuned = tuning_config(config, name)
      startup.check_config(tuned)
      fields = [tuned.model.to_dict()]
    for one in fields:
      try:
        crt_jax.build(one).check_length(length)
      except ValueError as error:
        raise ValueError(f'config.study, {name}: {error}') from None
  return names


def make(name: str, config: ConfigDict, folder: pathlib.Path) -> dict:
  """Makes one piece and returns its JSON; 'base' also writes its parameters."""
  seeds = config.study.seeds
  if name == 'gradients':
    print('gradients:', flush=True)
    return compare_gradients(config, base_params(config, folder))
  tuned = tuning_config(config, name)
  print(f'{name}: {tuned.train.steps} steps, seeds {", ".join(map(str, seeds))}', flush=True)
  given, seen = (None, 0) if name == 'base' else (base_params(config, folder), config.train.steps)
  record, params_S, _, _ = vmapped_seeds.train_and_keep(tuned, seeds, print_row, given, seen)
  if name == 'base':
    leaves = jax.device_get(jax.tree.leaves(params_S))
    np.savez(folder / 'base.npz', **{f'leaf{i}': leaf for i, leaf in enumerate(leaves)})
  print(summary(name, record), flush=True)
  return {'config': workdir.plain(tuned), **record}


def tuning_config(config: ConfigDict, name: str) -> ConfigDict:
  """Returns the config of one training run, without the study."""
  tuned = config.copy_and_resolve_references()
  with tuned.unlocked():
    study = tuned.study
    del tuned.study
    if name != 'base':
      tuned.train.steps = study.fine_tuning_steps
      tuned.optimizer.update(schedule='cosine', learning_rate=study.fine_tuning_rate)
      tuned.update(study.fine_tuning[name].to_dict())
  return tuned


def model_fields(config: ConfigDict) -> dict:
  return config.copy_and_resolve_references().model.to_dict()


def base_params(config: ConfigDict, folder: pathlib.Path) -> dict:
  """Returns the parameters of the first training run, stacked over seeds.

  Raises:
    ValueError: it was not done yet.
  """
  file = folder / 'base.npz'
  if not file.exists():
    raise ValueError(f'{file} is missing; make the piece base first')
  shapes = jax.eval_shape(crt_jax.build(config.model).init, random_key(0))
  with np.load(file) as arrays:
    leaves = [arrays[f'leaf{i}'] for i in range(len(arrays.files))]
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def compare_gradients(config: ConfigDict, trained_S: dict) -> dict:
  """Returns all estimators on every seed's fresh and trained parameters, and the text's name."""
  fields = model_fields(config)
  dataset = data.prepare(config.data)
  packed = next(iter(dataset.validation_sets.values()))
  batches = data.sampled_validation(
    packed, config.data.sequence_length, config.data.batch_size, config.study.batches, 1
  )
  init = jax.jit(crt_jax.build(fields).init)
  params_of = {f'fresh {seed}': init(random_key(seed)) for seed in config.study.seeds}
  rows = vmapped_seeds.rows_of(trained_S)
  params_of |= {
    f'trained {seed}': params for seed, params in zip(config.study.seeds, rows, strict=True)
  }
  found = gradients.compare(
    gradients.estimators(fields, config.study),
    params_of,
    batches,
    lambda text: print(text, flush=True),
  )
  return {'estimators': found, 'data': dataset.identity}


def draw(folder: pathlib.Path, record: dict, kind: str) -> None:
  """Prints the table, and draws the figure, of one half of the study."""
  table, figure = {
    'gradients': (page.gradients_table, figures.gradients),
    'fine_tuning': (page.fine_tuning_table, figures.fine_tuning),
  }[kind]
  text = table(record)
  (folder / f'{kind}.txt').write_text(text + '\n', 'utf-8')
  print(text)
  figure(record, folder / f'{kind}')
