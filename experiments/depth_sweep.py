"""Evaluates a trained model with other numbers of recurrent passes than it was trained with.

  python -m experiments.depth_sweep --workdir=runs/cart_cpu --depths=1,2,4,6,8,10,12,16

R loops of a CART, K passes of a CRT; the parameters stay as they are. Writes depth_sweep.json and
figures/depth_sweep.png (.svg) beside the run: what config.eval scores, at every depth.
--whole=false leaves the whole validation set out, for a quick look.
"""

from absl import flags

from crt_jax import cli

_WORKDIR = cli.define_workdir('Directory of a trained run')
_DEPTHS = flags.DEFINE_list('depths', ['1', '2', '4', '6', '8', '10', '12', '16'], 'R or K to try.')
_WHOLE = flags.DEFINE_bool('whole', True, 'Score the whole validation set, not only its sample.')


def main(argv: list[str]) -> None:
  del argv
  try:
    depths = tuple(int(depth) for depth in _DEPTHS.value)
  except ValueError:
    raise cli.Mistake(
      f'--depths={",".join(_DEPTHS.value)}: expected whole numbers, as in --depths=1,2,4'
    ) from None
  # Imported late: flags are checked first.
  from crt_jax import evaluation, json_text
  from crt_jax.evaluation import figures
  from crt_jax.runs import workdir
  from crt_jax.runs.provenance import origin
  from crt_jax.training import ending, finish

  run = finish.open_run(_WORKDIR.value)
  trained, passes = run.model.depths(), run.model.passes
  if trained is None or passes is None:
    raise cli.Mistake(f'--workdir={_WORKDIR.value}: this model has no recurrent passes to vary')
  config = run.config.copy_and_resolve_references()
  with config.unlocked():
    config.eval.update(depths=depths, sequential=False, whole=_WHOLE.value, jacobian_iterations=0)
  results = evaluation.protocol(run.model, run.params, run.dataset, config)
  print(ending.table(run.model, results))
  directory, trained = workdir.Workdir(_WORKDIR.value), list(trained)
  record = {'step': run.step, 'trained_depths': trained, 'results': results, 'origin': origin()}
  json_text.write(directory.path / 'depth_sweep.json', record)
  title = f'{config.model.name}, {config.data.corpus}, step {run.step}'
  for name, of_set in ending.by_set(results).items():
    file = directory.folder('figures') / f'depth_sweep{name and "_" + name}'
    figures.perplexity_against_depth(of_set, file, record['origin'], title, passes.label, trained)
  print(f'written to {directory.path}: depth_sweep.json and figures')


if __name__ == '__main__':
  cli.run(main)
