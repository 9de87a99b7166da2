"""Evaluates a trained model with other numbers of recurrent passes than it was trained with.

  python -m experiments.depth_sweep --workdir=runs/cart_cpu --depths=1,2,4,6,8,10,12,16

R loops of a CART, K passes of a CRT; the parameters stay as they are. Writes depth_sweep.json and
figures/depth_sweep.png beside the run, from its whole validation set (--windows=N: the first N
windows, for a quick look).
"""

from absl import flags

from experiments import cli

_WORKDIR = cli.define_workdir('Directory of a trained run')
_DEPTHS = flags.DEFINE_list('depths', ['1', '2', '4', '6', '8', '10', '12', '16'], 'R or K to try.')
_WINDOWS = flags.DEFINE_integer('windows', 0, 'Windows of the validation set; 0 = all.')


def main(argv):
  del argv
  try:
    depths = [int(depth) for depth in _DEPTHS.value]
  except ValueError:
    raise cli.Mistake(
      f'--depths={",".join(_DEPTHS.value)}: expected whole numbers, as in --depths=1,2,4'
    ) from None
  # After the flags: a typo is answered at once.
  from crt_jax.evaluation import figures
  from crt_jax.evaluation.depth_sweep import depth_sweep
  from crt_jax.training import final, workdir
  from crt_jax.training.origin import origin

  run = final.open_run(_WORKDIR.value)
  print(' depth  perplexity  bits per byte')
  found = depth_sweep(
    run.model, run.params, run.dataset, run.config, depths, _WINDOWS.value, print_record
  )
  directory = workdir.Workdir(_WORKDIR.value)
  record = {'step': run.step, **found, 'origin': origin()}
  workdir.write_json(directory.path / 'depth_sweep.json', record)
  figure = directory.folder('figures') / 'depth_sweep.png'
  title = f'{run.config.model.name}, {run.config.data.corpus}, step {run.step}'
  figures.perplexity_against_depth(
    found, figure, record['origin'], title, run.model.config.name, found['trained_depths']
  )
  print(f'written to {directory.path / "depth_sweep.json"} and {figure}')


def print_record(record: dict) -> None:
  print(f'{record["depth"]:6}  {record["perplexity"]:10.3f}  {record["bits_per_byte"]:13.4f}')


if __name__ == '__main__':
  cli.run(main)
