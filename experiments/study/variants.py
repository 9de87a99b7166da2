"""A study: variants of one small config, several seeds each, one file a variant, one figure."""

import pathlib

from ml_collections import ConfigDict

from crt_jax import data, json_text
from crt_jax.runs import workdir
from crt_jax.runs.provenance import origin
from crt_jax.training.terminal import show_any_text
from experiments import pages
from experiments.study import figures
from experiments.study.vmapped_seeds import train_stacked


def run(config: ConfigDict, path: str, only: tuple[str, ...] = ()) -> None:
  """Trains every variant of `config.study` that has no file yet, then writes results and figure.

  Args:
    only: names of variants; () = all.

  Raises:
    ValueError: the config is no study, a variant is unknown or wrong, or the directory holds the
      results of another config or text; nothing was compiled.
  """
  show_any_text()
  if 'study' not in config:
    raise ValueError('--config names no study; use one of configs/studies')
  names = list(config.study.variants)
  for name in only:
    if name not in names:
      raise ValueError(f'--only={name}: the study has {", ".join(names)}')
  folder = pathlib.Path(path) / 'variants'
  folder.mkdir(parents=True, exist_ok=True)
  results = {}
  for name in names:
    variant = variant_config(config, name)
    file, identity = folder / f'{name}.json', workdir.plain(variant)
    if file.exists():
      found = workdir.read_json(file)
      if workdir.changed_fields(found['config'], identity):
        raise ValueError(f'{file} is of another config; use a new --workdir')
      data.check_identity(str(file), found.get('data', {}), data.prepare(variant.data).identity)
      results[name] = found
    elif not only or name in only:
      print(f'{name}: {config.train.steps} steps, seeds {", ".join(map(str, config.study.seeds))}')
      trained = train_stacked(variant, config.study.seeds, print_row)
      results[name] = {'config': identity, 'origin': origin(), **trained}
      json_text.write(file, results[name])
      print(summary(name, results[name]))
  if len(results) < len(names):
    print(f'{len(results)} of {len(names)} variants are done')
    return
  record = {'study': config.study.figure, 'origin': origin(), 'variants': results}
  json_text.write(pathlib.Path(path) / 'results.json', record)
  figures.draw(record, pathlib.Path(path) / 'figure')
  print('\n'.join(summary(name, result) for name, result in results.items()))
  print(f'finished; everything is in {path}')


def variant_config(config: ConfigDict, name: str) -> ConfigDict:
  """Returns the config of one variant, without the study."""
  variant = config.copy_and_resolve_references()
  with variant.unlocked():
    changes = variant.study.variants[name].to_dict()
    del variant.study
    variant.update(changes)
  return variant


def print_row(row: dict) -> None:
  """Prints one line of progress: the loss of every seed."""
  losses = '  '.join(f'{loss:.4f}' for loss in row['loss'])
  print(f'  step {row["step"]}  loss {losses}', flush=True)


def summary(name: str, result: dict) -> str:
  """Returns one line: the validation of a variant, mean and spread over seeds."""
  parts = []
  for record in result['validation']:
    form = record['form'] if record['depth'] is None else f'{record["form"]} {record["depth"]}'
    parts.append(f'{form}: perplexity {pages.spread(record["perplexity"], ".3f")}')
  return f'{name:20} ' + '; '.join(parts)
