"""Pointer chasing by several models: how many levels does each solve (crt.md, 11)?

  python -m experiments.pointer_chasing --size=cpu --workdir=runs/pointer_chasing

trains configs/pointer_chasing.py once for every model, each as an ordinary run in a directory of
its own, and collects what their evaluations say. The same command goes on where it was stopped. A
model is written as that config's arguments with slashes: bptt, unroll/K=5, chunked/c=8/K=2,
transformer/N=3. A level counts as solved above 90 % of right answers (11.3). The directory gets

  NAME/           the run of a model
  results.json    accuracies of every model by level, at every validation and at the end
  levels.png, .svg  levels solved against depth

The sizes are those of the config. At size=cpu, on one core of an AMD EPYC, a step takes about
0.07 s by backpropagation through time, 0.07 s a layer of a transformer, 0.09 s a parallel pass.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from crt_jax import cli

MODELS = (
  'bptt',
  'transformer/N=1',
  'transformer/N=3',
  'transformer/N=5',
  'chunked/c=8/K=2',
  'unroll/K=5',
  'unroll/K=11',
)

_WORKDIR = cli.define_workdir('Directory of all models')
_SIZE = flags.DEFINE_string('size', 'cpu', "The config's size: cpu, e128 or e256.")
_MODELS = flags.DEFINE_list('models', list(MODELS), 'Models to train and show, in this order.')
_SEED = flags.DEFINE_integer(
  'seed', 42, 'Of parameters and examples.', lower_bound=0, upper_bound=2**32 - 1
)
_STEPS = flags.DEFINE_integer('steps', 0, 'Updates of every model; 0: as the config says.')


def main(argv: list[str]) -> None:
  del argv
  if not _MODELS.value:
    raise cli.Mistake('--models is empty; give at least one, as in --models=bptt')
  # All are checked before any is trained, so that a mistake in the last is reported at once.
  configs = {model: config_of(model) for model in dict.fromkeys(_MODELS.value)}
  from crt_jax import json_text
  from crt_jax.runs import lock
  from crt_jax.runs.provenance import origin
  from crt_jax.training import loop
  from experiments.pointer_chasing import figure

  folder, models = pathlib.Path(_WORKDIR.value), {}
  for model, config in configs.items():
    print(f'{model}: {config.train.steps} steps', flush=True)
    run = folder / model.replace('/', '_')
    with lock.released():
      loop.train(config, str(run))
    models[model] = result_of(run, config)
    print(f'{model}: {words(models[model])}', flush=True)
    record = {'study': 'pointer_chasing', 'models': models, 'origin': origin()}
    json_text.write(folder / 'results.json', record)
    figure.levels(record, folder / 'levels')
  print(f'finished; everything is in {folder}')


def config_of(model: str) -> ConfigDict:
  """Returns the config of one model of --models.

  Raises:
    Mistake: a wrong model, size or argument.
  """
  from crt_jax.cli import config_files

  arguments = f'model={model.replace("/", ",")},size={_SIZE.value},seed={_SEED.value}'
  config = config_files.load(f'configs/pointer_chasing.py:{arguments}')
  if _STEPS.value:
    with config.unlocked():
      config.train.steps = _STEPS.value
  return config.lock()


def result_of(run: pathlib.Path, config: ConfigDict) -> dict:
  """Returns the results of a finished run as JSON.

  They are 'config', 'parameters', 'seconds' of training, 'curve', rows of step and shares of
  correct answers, and 'final', a record of each form at the end.
  """
  from crt_jax import accounting, json_text
  from crt_jax.runs import workdir

  rows = [row for row in json_text.parse_lines(run / 'metrics.jsonl') if 'validation_solved' in row]
  evaluation = workdir.read_json(run / 'evaluation.json')
  return {
    'config': workdir.plain(config),
    'parameters': accounting.parameters(config.model).stored,
    'seconds': evaluation['training_seconds'],
    'curve': [{'step': row['step'], 'accuracy': shares(row, 'validation_')} for row in rows],
    'final': [
      {name: record[name] for name in ('form', 'depth', 'targets')} | {'accuracy': shares(record)}
      for record in evaluation['results']['sampled']
    ],
    'origin': evaluation['origin'],
  }


def shares(row: dict, prefix: str = '') -> dict[str, float]:
  """Returns the shares of correct answers of a row, by level."""
  start = f'{prefix}accuracy_'
  return {name.removeprefix(start): row[name] for name in row if name.startswith(start)}


def words(result: dict) -> str:
  """Returns one line: levels solved in every form."""
  from experiments.pointer_chasing import figure

  parts = []
  for record in result['final']:
    form = record['form'] + ('' if record['depth'] is None else f' K={record["depth"]}')
    solved, final = figure.solved_levels(record['accuracy'])
    parts.append(f'{form}: {solved} levels, final query {final:.2f}')
  return '; '.join(parts)


if __name__ == '__main__':
  cli.run(main)
