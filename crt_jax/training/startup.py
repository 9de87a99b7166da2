"""Everything before the first step: check the config, open data and run, restore the state."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import crt_jax
from crt_jax import data, decoding, evaluation, json_text, placing, schema, sharding, storage
from crt_jax.cluster import agreement
from crt_jax.convert import warm_start
from crt_jax.data.tokenizers import Tokenizer
from crt_jax.models import attention_choice, device_defaults
from crt_jax.models.base import Model
from crt_jax.program import warn
from crt_jax.runs import bucket, checkpoint, train_state, workdir
from crt_jax.runs.checksums import OtherOptimizer
from crt_jax.runs.provenance import origin
from crt_jax.training import sharding_table, step
from crt_jax.training.conversion import fields_of_some, params_of_some
from crt_jax.training.report import Clock
from crt_jax.training.terminal import Stages, show_any_text
from crt_jax.types import Params

BEGINNING = 'begins_with.json'  # the run and the step of train.init_from


@dataclasses.dataclass
class Run:
  """A run that is ready to take its next step."""

  config: Any
  model: Any
  mesh: Mesh
  dataset: Any
  directory: workdir.Workdir
  checkpoints: checkpoint.Checkpoints
  state: train_state.TrainState
  first_step: int  # the number of updates before this process
  clock: Clock
  input_clock: Clock  # time of waiting for the next batch and copying it to the devices
  depths: tuple  # one executable for each; () if no step is left
  compile: Callable[..., step.Compiled]  # step.compile_steps for this run, except its `report`
  batches: Any  # batches[step], a pure function of the step
  feed: Iterator  # the same, read ahead
  place: placing.Placement  # maps rows of this process to the global batch on devices
  record: dict  # what every checkpoint says about the run
  compiled: step.Compiled = dataclasses.field(init=False)

  def save(self, cross_entropy: float | None = None) -> None:
    """Starts writing a checkpoint of the current state."""
    bucket.upload(self.directory.name)  # metrics first, since a checkpoint needs its rows
    record = {**self.record, 'training_seconds': self.clock.seconds}
    self.checkpoints.save(self.state, record, cross_entropy)


def prepare(config: ConfigDict, path: str, fork: bool, reset_optimizer: bool = False) -> Run | None:
  """Returns the run, not yet compiled, or None if it is finished already.

  Args:
    fork: continue although the run has another config.
    reset_optimizer: start with a new optimiser state if a fork's has another structure.

  Raises:
    ValueError: a mistake in the config, the data or the directory. Nothing was compiled, and
      nothing that was there was changed.
  """
  plan = check(config, path, fork, reset_optimizer)
  if plan is None:
    return None
  config = plan.config
  dataset = open_data(plan)
  directory, checkpoints, start, clock = open_run(plan, dataset)
  is_done = int(start.step) == config.train.steps
  depths = () if is_done else plan.model.depths() or (None,)
  place = placing.on_mesh(config.data.batch_size, plan.mesh)
  batches = data.train_batches(dataset, config.data, config.seed, place.rows)
  return Run(
    config=config,
    model=plan.model,
    mesh=plan.mesh,
    dataset=dataset,
    directory=directory,
    checkpoints=checkpoints,
    state=start,
    first_step=int(start.step),
    clock=clock,
    input_clock=Clock(),
    depths=depths,
    compile=functools.partial(
      step.compile_steps,
      plan.steps.make,
      depths,
      plan.steps.abstract,
      step.abstract_batch(config, plan.mesh),
      telemetry=config.train.telemetry_every > 0,
    ),
    batches=batches,
    feed=batches.iterator(int(start.step)),
    place=place,
    record={
      'config': workdir.plain(config),
      'origin': origin(),
      'data': dataset.identity,
      'begins_with': saved_beginning(path),
      'computed_as': device_defaults.decided(plan.model.config),
    },
  )


@dataclasses.dataclass(frozen=True)
class Plan:
  """Everything that follows from a config alone, checked before any file is read or written.

  Attributes:
    changed: fields that have other values in the run of the directory.
    reset_optimizer: whether to start with a new optimiser state.
  """

  config: Any
  path: str
  changed: dict
  model: Any
  mesh: Mesh
  steps: step.Steps
  reset_optimizer: bool


def check(config: ConfigDict, path: str, fork: bool, reset_optimizer: bool) -> Plan | None:
  """Returns the plan of a run; None if the run is finished already."""
  show_any_text()
  config, model = check_config(config, jax.devices()[0])
  agreement.require_equal(
    'config', {**workdir.plain(config), '--workdir': str(path), '--fork': fork, **devices()}
  )
  if reset_optimizer and not fork:
    raise ValueError('--reset_optimizer needs --fork; add it')
  evaluation.forms(evaluation.scoring_model(model, config), config)
  changed = workdir.check_workdir(path, config, fork)
  finished = workdir.finished_step(path)
  if finished is not None and not changed:
    print(f'{path}: this run is finished, at step {finished}; nothing to do')
    return None
  attention_choice.check_device(model.config)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(config.data.batch_size, config.train.accumulation, mesh)
  steps = step.steps_of(config, model, mesh)
  return Plan(config, path, changed, model, mesh, steps, reset_optimizer)


def open_data(plan: Plan) -> data.Dataset:
  """Returns the dataset of a run, which must be the same on every process."""
  config = plan.config
  with Stages() as report:
    dataset = data.prepare(config.data, report=report)
  dataset.check_vocabulary(config.model.vocab_size)
  evaluation.plan(evaluation.scoring_model(plan.model, config), dataset, config)
  decoding.sample_arguments(config, dataset.tokenizer)
  remarks = plan.model.check_length(config.data.sequence_length) + dataset.remarks(config.model)
  for remark in remarks:
    warn(remark)
  agreement.require_equal_data(dataset)
  return dataset


def open_run(plan: Plan, dataset: data.Dataset) -> tuple:
  """Returns the directory, its checkpoints, the state to continue from and the run's clock."""
  config, path = plan.config, plan.path
  beginning = first_parameters(config, path, plan.changed)
  source = None
  if beginning:
    kept = config.train.keep_layers
    source = trained_source(beginning, plan.model, plan.mesh, dataset.tokenizer, kept)
  directory = workdir.open_workdir(path, config, fork=bool(plan.changed))
  agreement.require_equal('work directory', workdir.seen(directory))
  is_first = jax.process_index() == 0
  if is_first:
    table = sharding_table.layout(plan.model.axes(), plan.steps.abstract)
    (directory.path / 'sharding.txt').write_text(table, 'utf-8')
  checkpoints = checkpoint.Checkpoints(path, config.train.keep_checkpoints)
  with_new_optimizer = None
  if plan.reset_optimizer:
    with_new_optimizer = train_state.with_new_optimizer(plan.steps.optimizer, plan.steps.abstract)
  restored = restore(checkpoints, plan.steps.abstract, with_new_optimizer, config, path)
  if restored is None:
    if is_first:
      refuse_lost_checkpoints(directory)
      if beginning:
        json_text.write(directory.path / BEGINNING, beginning)
      dataset.tokenizer.save(directory.folder('tokenizer'))
      print('initialising the parameters ...', flush=True)
    start = train_state.init_state(
      plan.model, plan.steps.optimizer, plan.steps.abstract, config.seed, source
    )
    clock = Clock()
  else:
    start, record = restored
    clock = Clock(record['training_seconds'])
    decided = device_defaults.decided(plan.model.config)
    check_continuation(config, path, record, dataset.identity, decided)
  if plan.changed:
    workdir.record_fork(directory, config, plan.changed, int(start.step))
  bucket.upload(path)
  return directory, checkpoints, start, clock


def refuse_lost_checkpoints(directory: workdir.Workdir) -> None:
  """Raises ValueError where a run whose checkpoints are gone would begin anew over its metrics.

  A run that is killed while it writes its first checkpoint has none, so that two of them count.
  What was set aside for its losses or its damage was reported then.
  """
  path = directory.path
  rows = json_text.rows(directory.metrics)
  last = rows[-1]['step'] if rows else 0
  is_set_aside = any((path / name).exists() for name in ('damaged', 'diverged'))
  every = workdir.saved_config(directory.name)['train']['checkpoint_every']  # before a fork
  if last >= 2 * every and not is_set_aside:
    raise ValueError(
      f'{directory.name}: its metrics reach step {last} and its checkpoints are gone; put them '
      'back into checkpoints/, or use a new --workdir'
    )


def restore(
  checkpoints: checkpoint.Checkpoints,
  abstract: train_state.TrainState,
  with_new_optimizer: Callable | None,
  config: ConfigDict,
  path: str,
) -> tuple[train_state.TrainState, dict] | None:
  """Returns the newest state; ValueError, naming the fields, for another optimiser structure."""
  try:
    return checkpoints.restore_latest(abstract, with_new_optimizer)
  except OtherOptimizer as error:
    changed = workdir.changed_fields(error.record['config'], workdir.plain(config))
    fields = [
      f'{name} was {old!r}, is {new!r}'
      for name, (old, new) in changed.items()
      if name.startswith('optimizer.')
    ]
    raise ValueError(
      f"{path}: the optimiser's state of step {error.record['step']} has another structure "
      f'({"; ".join(fields) or error}); begin a new --workdir with its parameters, '
      f'--config.train.init_from={path}, or go on here with a new state: --fork --reset_optimizer'
    ) from None


def first_parameters(config: ConfigDict, path: str, changed: dict) -> dict | None:
  """Returns the run and step whose parameters a new run starts from (config.train.init_from).

  It returns None if train.init_from is empty or this run has a checkpoint of its own. The step is
  the newest one at the first start and then stays the same: a run that is killed before its first
  checkpoint starts from it again.

  Raises:
    ValueError: there is no checkpoint to begin with, processes see different ones, or a fork asks
      for another beginning.
  """
  folder = config.train.init_from
  if bucket.is_bucket(folder):
    folder = bucket.check(folder, 'train.init_from')
  elif folder:
    folder = str(storage.local_path('train.init_from', folder))
  own = bucket.steps_on_disk(bucket.place(path) / 'checkpoints')
  if 'train.init_from' in changed and own:
    raise ValueError(
      f'train.init_from={folder!r}: {path} has begun already, at step {own[-1]}; '
      'use a new --workdir'
    )
  beginning = None
  if folder and not own:
    beginning = saved_beginning(path)
    if beginning is None or beginning['workdir'] != folder:
      beginning = {'workdir': folder, 'step': checkpoint.newest(folder)}
  agreement.require_equal('checkpoints', {'own': own, 'begins with': beginning})
  return beginning


def saved_beginning(path: str) -> dict | None:
  """Returns the run and step that a run started from, None if its parameters were initialised."""
  file = bucket.local(path) / BEGINNING
  return workdir.read_json(file) if file.exists() else None


def trained_source(
  beginning: dict, model: Model, mesh: Mesh, tokenizer: Tokenizer, kept: Sequence[int] = ()
) -> tuple[Model, Params]:
  """Returns a trained model and its parameters, if `model` can start from them.

  Args:
    kept: which of its layers are used; () = all.

  Raises:
    ValueError: they cannot be read, or that model or its tokenizer does not fit `model`.
  """
  folder = beginning['workdir']

  def place(trained: ConfigDict):
    try:
      warm_start.check(model, crt_jax.build(fields_of_some(trained.model, kept)))
    except ValueError as error:
      raise ValueError(f'train.init_from={folder}: {error}') from None
    return mesh

  found = checkpoint.load_params(folder, step=beginning['step'], mesh=place)
  trained, params, its_tokenizer, step = found
  if its_tokenizer.hash != tokenizer.hash:
    raise ValueError(
      f'train.init_from={folder} was trained with another tokenizer; '
      f'use that: --config.data.tokenizer={folder}/tokenizer'
    )
  if jax.process_index() == 0:
    print(f'begins with   step {step} of {folder} ({trained.model.name})')
  some = crt_jax.build(fields_of_some(trained.model, kept))
  return some, params_of_some(params, kept)


def devices() -> dict:
  """Returns the device facts that must be the same on every process."""
  return {'platform': jax.default_backend(), 'device kind': jax.local_devices()[0].device_kind}


def check_continuation(
  config: ConfigDict, path: str, record: dict, identity: dict, decided: dict
) -> None:
  """Raises ValueError if the checkpoint has other data, or a step past the last one.

  It warns if versions or devices differ: the run continues correctly then, but not to the same
  bits.
  """
  data.check_identity(path, record['data'], identity)
  if record['step'] > config.train.steps:
    raise ValueError(
      f'train.steps={config.train.steps} but {path} is at step {record["step"]} already; use more'
    )
  before, now = record['origin'], origin()
  names = ('versions', 'platform', 'device', 'devices')
  changed = [
    f'{name} was {before[name]}, is {now[name]}' for name in names if before[name] != now[name]
  ]
  before = record.get('computed_as', decided)  # not in older records
  changed += [
    f'model.{name} was {before[name]}, is {decided[name]}'
    for name in decided
    if before[name] != decided[name]
  ]
  if changed:
    warn(f'continuing, but not with the same bits: {"; ".join(changed)}')


def check_config(config: ConfigDict, device: jax.Device | None = None) -> tuple[ConfigDict, Model]:
  """Returns the complete, typed config and the model, with 'auto' fields set for a device.

  Raises:
    ValueError: a value that is wrong or that the model cannot use; names the field.
  """
  config = schema.check(config)
  model = crt_jax.build(config.model, device)
  if config.train.telemetry_every:
    model.check_telemetry()
  if config.eval.jacobian_iterations and model.passes is None:
    raise ValueError(
      f'eval.jacobian_iterations={config.eval.jacobian_iterations}: a {config.model.name} has no '
      'recurrence; use 0'
    )
  return config, model
