"""Trains a model as a config says, evaluates it, and leaves everything in one directory.

  crt-train --config=configs/quickstart.py --workdir=runs/quickstart

trains from the start, or from where the run in that directory stands: a run that was killed,
preempted or out of disk space goes on with the same command, to the same parameters. SIGTERM and
SIGHUP save first and end with code 75, Ctrl-C with 130; a second Ctrl-C leaves at once. A finished
run stays as it is. At the end the model is evaluated by parallel passes and by the exact
recurrence, and writes a sample of text. The directory then holds

  config.json      every value of the config, and what it ran on
  sharding.txt     which parameter lies on which mesh axis, and the bytes per device
  metrics.jsonl    one line per report: step, loss, perplexity, ...
  tensorboard/     the same for TensorBoard, with config, scores, figures and sample
  checkpoints/     the newest ones and the best one
  evaluation.json, figures/, samples/

  crt-train --mode=status --workdir=runs/quickstart

says where a run stands, also one that is training: step, loss, validation, time left, and how it
last failed.

  crt-train --mode=eval --workdir=runs/quickstart

evaluates the newest checkpoint again, with the config that it was trained with: one process on its
first device, several, started as for training, on the mesh of the config.
"""

import sys

from crt_jax.cluster.preemption import StopSignal

_STOP = StopSignal()


def start() -> None:
  """Runs the console script `crt-train`; does not return."""
  _STOP.listen()  # before slow imports, so that signals are handled from here on
  from crt_jax import cli

  try:
    _define_flags()
    cli.run(main)
  finally:
    _STOP.ignore()


def _define_flags() -> None:
  from absl import flags

  from crt_jax import cli
  from crt_jax.cli import distributed

  cli.define_config(required=False)
  cli.define_workdir('Directory of the run: new, empty, or holding this very run', buckets=True)
  flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'eval', 'status'],
    'Train and evaluate, evaluate a checkpoint, or say where a run stands.',
  )
  flags.DEFINE_bool(
    'fork', False, 'Continue a run although its config was another one; both are recorded.'
  )
  flags.DEFINE_bool(
    'reset_optimizer',
    False,
    "With --fork: where the changed config gives the optimiser's state another structure, begin it "
    'anew; step, learning rate and parameters (averaged ones, where an average was kept) go on.',
  )
  flags.DEFINE_enum(
    'track',
    None,
    ['wandb', 'trackio'],
    'Show the run in a tracker too, one that goes on under the id that it has; WANDB_MODE=offline '
    'needs no account.',
  )
  distributed.define_flags()


def main(argv: list[str]) -> None:
  from absl.flags import FLAGS

  from crt_jax import cli
  from crt_jax.cli import distributed, texts

  del argv
  if FLAGS.mode != 'train':
    begins = ('fork', 'reset_optimizer', 'track')
    cli.refuse_overrides(f'--mode={FLAGS.mode} goes by the config of the run', *begins)
  if FLAGS.mode == 'status':
    from crt_jax.runs import standing

    print(standing.describe(FLAGS.workdir))
    return
  if sys.stdout.isatty():  # the slow imports begin
    print(f'run           {FLAGS.workdir}, starting ...', flush=True)
  with distributed.joined(_STOP):
    from crt_jax.training import finish, loop  # imported late: flags are checked first

    if FLAGS.mode == 'eval':
      finish.evaluate_checkpoint(FLAGS.workdir, _STOP)
    else:
      config = cli.require_config()
      if texts.is_batch():
        texts.refuse_stand_ins(config, *cli.typed_config())
      loop.train(config, FLAGS.workdir, FLAGS.fork, FLAGS.reset_optimizer, _STOP, FLAGS.track or '')
