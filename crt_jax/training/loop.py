"""The training loop, from a config to a finished work directory, in order of execution."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from crt_jax import evaluation
from crt_jax.cluster.preemption import StopSignal
from crt_jax.cluster.watchdog import Watchdog
from crt_jax.runs import bucket, tracking
from crt_jax.runs.metrics import NonFinite
from crt_jax.runs.standing import recording
from crt_jax.training import finish
from crt_jax.training.cost_card import compiled_card, cost_card, depth_names
from crt_jax.training.profile import Profile, profiled
from crt_jax.training.report import Reporter
from crt_jax.training.scoring import Scoring
from crt_jax.training.startup import Run, prepare
from crt_jax.training.terminal import Task


class Diverged(SystemExit):
  """A loss or gradient was not finite; the program ends with exit code 1 and one line."""

  together = True  # the loss is the same on every process, so all of them stop at this step


def train(
  config: ConfigDict,
  path: str,
  fork: bool = False,
  reset_optimizer: bool = False,
  stop: StopSignal | None = None,
  track: str = '',
) -> None:
  """Trains to `config.train.steps` from the state of the work directory, then evaluates.

  Args:
    config: a complete config (crt_jax/schema).
    path: the work directory (workdir.py lists its files).
    fork: continue a run whose config differs from this one.
    reset_optimizer: for a fork, see startup.prepare.
    stop: receives the signals of the process; None: nothing does.
    track: 'wandb' or 'trackio', which also gets the rows (runs/tracking.py); '' for none.

  Raises:
    ValueError: a mistake in the config, the data or the directory; nothing was compiled or lost.
    OSError: the disk is full; the last good checkpoint is kept.
    Preempted: a signal came and everything is saved; exit code 75, or 130 after Ctrl-C.
    Diverged: NaN or Inf; the last good checkpoint is kept and the batch is stored.
  """
  tracking.check(track)
  stop = stop or StopSignal()
  stop.standing = functools.partial(standing, path)
  run = prepare(config, path, fork, reset_optimizer)
  if run is None:
    return
  with recording(run.directory.path, jax.process_index() == 0):
    train_run(run, stop, track)


def train_run(run: Run, stop: StopSignal, track: str = '') -> None:
  """Trains a prepared run to its end; raises the errors that `train` lists."""
  reporter = Reporter(run, track)
  try:
    with jax.set_mesh(run.mesh):
      reporter.say(cost_card(run))
      scoring = compile_all(run, reporter)
      if run.first_step:
        reporter.say(f'continuing after step {run.first_step}')
      with (
        stop.between_steps(),
        Watchdog(run.config.train.stall_seconds, jax.process_index()) as watch,
      ):
        with Profile(profiled(run.config), run.directory.path / 'profile') as profile:
          run_steps(run, reporter, stop, watch, profile)
        run.checkpoints.wait()
      finish.finish(run, scoring, reporter)
  except NonFinite as error:
    raise Diverged(store_batch(run, error)) from None
  finally:
    reporter.close()
    run.checkpoints.close()


def compile_all(run: Run, reporter: Reporter) -> Scoring:
  """Compiles the training steps and the evaluation, and prints their memory and time."""
  number = len(run.depths) * (1 + (run.config.train.telemetry_every > 0))
  if number:
    names = ', '.join(name or 'the step' for name in depth_names(run))
    reporter.say(f'compiling     {names} ...')
  with Task('compiling', number) as task:
    run.compiled = run.compile(report=task.update)
  if number:
    reporter.say(compiled_card(run))
  reporter.say('compiling     the evaluation, and trying it on one batch ...')
  scoring = Scoring.rehearsed(run.model, run.state.evaluated, run.dataset, run.config, run.place)
  reporter.say(scoring.estimate())
  return scoring


def standing(path: str) -> str:
  """Returns a sentence on what of a run is saved."""
  if bucket.is_bucket(path):  # asking it may take longer than a signal allows
    return f'what is saved is in {path}'
  steps = bucket.steps_on_disk(bucket.place(path) / 'checkpoints')
  return f'saved at step {steps[-1]}' if steps else 'there was nothing to save yet'


def run_steps(
  run: Run, reporter: Reporter, stop: StopSignal, watch: Watchdog, profile: Profile
) -> None:
  """Runs the remaining steps, with validation, logging and checkpoints."""
  train_config = run.config.train
  pending = None  # the step whose metrics are still on the device
  for step in range(run.first_step + 1, train_config.steps + 1):
    is_last = step == train_config.steps
    validates = is_last or step % train_config.eval_every == 0
    saves = is_last or step % train_config.checkpoint_every == 0
    measures = train_config.telemetry_every > 0 and step % train_config.telemetry_every == 0
    depth = run.model.depth_at(run.config.seed, step - 1)
    watch.beat(step)
    profile.before(step, run.state)
    with run.clock:
      with run.input_clock:
        batch = run.place(next(run.feed))
      run.state, metrics = run.compiled(depth, run.state, batch, measures)
      # The metrics of the step before are read while this one runs, so the device never waits for
      # the host.
      if pending is not None:
        reporter.write(reporter.read(*pending))
      pending = (step, depth, metrics, run.input_clock.seconds)
      reporter.advance(step)
      stops = stop.requested(step)
      if not (validates or saves or measures or stops):
        continue
      row = reporter.read(*pending)
      pending = None
    validation = {}
    if validates:
      reporter.validating()
      validation = validate(run)
    reporter.write(row | validation, always=validates or measures)
    if saves or stops:
      run.save(validation.get('validation_cross_entropy'))
    if stops:
      run.checkpoints.wait()
      raise stop.stopped(step)
    run.checkpoints.check()


def validate(run: Run) -> dict:
  """Returns the validation numbers of a row, over the same windows every time.

  With several sets each number's name ends in the name of its set; validation_cross_entropy, which
  selects the best checkpoint, is their mean.
  """
  found = evaluation.during_training(
    run.model, run.state.evaluated, run.dataset, run.config, run.place
  )
  several = len(found) > 1
  mean = sum(record['cross_entropy'] for record in found.values()) / len(found)
  return {'validation_cross_entropy': mean} | {
    f'validation_{name}' + (f'_{of}' if several else ''): value
    for of, record in found.items()
    for name, value in record.items()
    if name not in ('targets', 'means') and value is not None
  }


def store_batch(run: Run, error: NonFinite) -> str:
  """Saves this process's rows of a failed step; returns a line with their path."""
  file = run.directory.folder('diverged') / f'step_{error.step}_process_{jax.process_index()}.npz'
  depth = run.model.depth_at(run.config.seed, error.step - 1)
  batch, rows = run.batches[error.step - 1], np.asarray(run.place.rows)
  np.savez(file, step=error.step, depth=depth or 0, rows=rows, **batch)
  run.checkpoints.wait()
  good = run.checkpoints.back_to_good(error.last_good)
  kept = (
    'there is no good checkpoint' if good is None else f'the last good checkpoint is of step {good}'
  )
  return (
    f'error: step {error.step} is not finite ({error}); the batch is in '
    f'{run.directory.name}/diverged/{file.name}; {kept}; '
    f'lower optimizer.learning_rate and {"start again" if good is None else "continue"} with --fork'
  )
