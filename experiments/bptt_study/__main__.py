"""Gradient estimators of a CRT against exact backpropagation through time (docs/bptt.md).

  python -m experiments.bptt_study --config=configs/bptt_study.py --workdir=runs/bptt_study

trains a model by parallel passes, compares the gradient of every estimator with the exact one on
fresh and on trained parameters (cosine, ratio of norms, time, memory of temporaries), and then
fine-tunes it in several ways for the same number of steps. Each piece leaves a file when it is
done, so the same command goes on where it was stopped. At the end the directory holds

  base.json, gradients.json, NAME.json   the pieces; base.npz, the parameters
  gradients.txt, fine_tuning.txt         tables
  gradients.png, fine_tuning.png         figures, and the same as .svg
  results.json                           all of it, with hardware and versions
"""

from absl import flags

from crt_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir('Directory of the study')
_ONLY = flags.DEFINE_string('only', '', 'Comma-separated pieces to make now; empty: all.')


def main(argv: list[str]) -> None:
  del argv
  from experiments.bptt_study import pieces  # imported late: flags are checked first

  only = tuple(filter(None, _ONLY.value.split(',')))
  pieces.run(cli.require_config(), _WORKDIR.value, only)


if __name__ == '__main__':
  cli.run(main)
