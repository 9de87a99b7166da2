"""How fast the parallel passes of a trained CRT approach its exact recurrence (crt.md, 3.1):

  python -m experiments.convergence --workdir=runs/c42,runs/c137,runs/c271 --output=runs/convergence

per position and by prefix length, for pass K = 1, 2, ...: the distance of the last hidden state,
the perplexity, by how much each pass shrinks the change of the one before, and after how many
passes nothing is left but float32 rounding. Several directories, of one config but for the seed,
give mean and spread; every checkpoint that they hold is measured. The output directory gets
convergence.json, convergence.txt and the figure (.png, .svg).

  python -m experiments.main --config=configs/convergence.py:seed=42 --workdir=runs/c42

trains such a model, on 2 048 positions. --length beyond the trained one shows what lies there:
integer rotary angles do not extrapolate.
"""

import pathlib

from absl import flags

from crt_jax import cli

_WORKDIR = flags.DEFINE_list('workdir', [], 'Directories of trained runs; only read; required.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the results; required.')
_PASSES = flags.DEFINE_integer('passes', 16, 'K = 1 .. so many are compared.', lower_bound=2)
_LENGTH = flags.DEFINE_integer('length', 0, 'Positions; 0: as many as in training.', lower_bound=0)
_ROWS = flags.DEFINE_integer('rows', 8, 'Windows of the validation text.', lower_bound=1)
_SEED = flags.DEFINE_integer(
  'seed', 42, 'Of the choice of windows.', lower_bound=0, upper_bound=2**32 - 1
)


def main(argv: list[str]) -> None:
  del argv
  if not _WORKDIR.value:
    raise cli.Mistake('--workdir is missing, as in --workdir=runs/c42,runs/c137')
  if not _OUTPUT.value:
    raise cli.Mistake('--output is missing, as in --output=runs/convergence')
  from crt_jax import data, json_text
  from crt_jax.runs import bucket, checkpoint, workdir
  from crt_jax.runs.provenance import origin
  from crt_jax.training import finish
  from experiments.convergence import figure, gaps, page

  runs = [finish.open_run(path) for path in _WORKDIR.value]
  check_alike(runs)
  config = runs[0].config
  trained = config.data.sequence_length
  length = _LENGTH.value or trained
  if length < trained:
    raise cli.Mistake(f'--length={length}: the runs were trained with {trained}; use that or more')
  records = []
  for path, run in zip(_WORKDIR.value, runs, strict=True):
    packed = next(iter(run.dataset.validation_sets.values()))
    [batch] = data.sampled_validation(packed, length, _ROWS.value, 1, _SEED.value)
    for step in bucket.steps_on_disk(pathlib.Path(path) / 'checkpoints'):
      _, params, _, _ = checkpoint.load_params(path, step)
      found = gaps.against_exact(run.model, params, batch, _PASSES.value)
      edges = gaps.edges_of(length, trained)
      record = {'seed': run.config.seed, 'step': step}
      records.append(record | gaps.summary(found, edges, trained))
      print(line(records[-1], config.model.depth), flush=True)
  result = {
    'study': 'convergence',
    'trained_length': trained,
    'length': length,
    'edges': edges,
    'passes': _PASSES.value,
    'rows': _ROWS.value,
    'floor': gaps.FLOOR,
    'config': workdir.plain(config),
    'runs': records,
    'origin': origin(),
  }
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  json_text.write(folder / 'convergence.json', result)
  text = page.table(result)
  (folder / 'convergence.txt').write_text(text + '\n', 'utf-8')
  print(text)
  figure.convergence(result, folder / 'convergence')
  print(f'{result["rows"]} validation windows; written to {folder}')


def check_alike(runs: list) -> None:
  """Raises Mistake unless the runs differ in nothing but their seeds."""
  from crt_jax.runs import workdir

  first = workdir.plain(runs[0].config)
  for path, run in zip(_WORKDIR.value, runs, strict=True):
    changed = workdir.changed_fields(first, workdir.plain(run.config))
    changed.pop('seed', None)
    if changed:
      raise cli.Mistake(
        f'--workdir: {path} differs from {_WORKDIR.value[0]} in {", ".join(changed)}; '
        'only the seed may differ'
      )


def line(record: dict, depth: int) -> str:
  """Returns one line on a checkpoint at the depth it was trained with."""
  exact = record['whole_exact_perplexity']
  passes = record['whole_perplexity']
  at = min(depth, len(passes))
  until = record['whole_passes_until_exact']
  return (
    f'seed {record["seed"]}, step {record["step"]}: perplexity {exact:.4f} exact, '
    f'{passes[at - 1] - exact:+.4f} at K={at}, {passes[-1] - exact:+.5f} at K={len(passes)}; '
    f'contraction {record["ratio"][at - 2]:.2f}; exact everywhere after {until or "more"} passes'
  )


if __name__ == '__main__':
  cli.run(main)
