"""Trains the variants of a small study, several seeds each, and draws what came out.

  python -m experiments.study --config=configs/studies/gate.py --workdir=runs/gate

A study is a config with a list of variants (config.study). All seeds of a variant are trained at
once. Each variant leaves a file when it is done, so the same command goes on where it was stopped.
At the end the directory holds

  variants/NAME.json   history, validation and Jacobian of every seed
  results.json         all of them, with hardware and versions
  figure.png, .svg
"""

from absl import flags

from crt_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir('Directory of the study')
_ONLY = flags.DEFINE_string('only', '', 'Comma-separated variants to train now; empty: all.')


def main(argv: list[str]) -> None:
  del argv
  from experiments.study import variants  # imported late: flags are checked first

  only = tuple(filter(None, _ONLY.value.split(',')))
  variants.run(cli.require_config(), _WORKDIR.value, only)


if __name__ == '__main__':
  cli.run(main)
