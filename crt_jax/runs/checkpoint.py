"""Checkpoints: what a run needs to continue with the same bits; written in background, verified.

A checkpoint holds three items: `params` (their moving average where there is one, and then
`optimizer` has what is trained on), `optimizer` (moments and step) and `record` (JSON: config,
versions, clock, data, and a checksum of every array). The tokenizer lies once beside all of them,
and each record has its hash. No iterator is saved, because the step determines the data. Kept are
the newest `keep`, the one with the lowest validation cross-entropy, and one whose own loss is known
to be finite. Orbax makes each write atomic; the checksums find what it cannot see, such as a
flipped bit in a file. What cannot be read is set aside only where damage.py finds evidence.
"""

import functools
import logging as python_logging
import math
import pathlib
import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import crt_jax
from crt_jax import sharding, storage
from crt_jax.data import tokenizers
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.program import warn
from crt_jax.runs import bucket, damage, retention
from crt_jax.runs import workdir as workdir_lib
from crt_jax.runs.bucket import steps_on_disk
from crt_jax.runs.checksums import (
  CHECKSUM,
  Damaged,
  OtherOptimizer,
  check_optimizer,
  check_record,
  check_shapes,
  describe,
  signed,
  verify,
)
from crt_jax.runs.damage import one_line
from crt_jax.runs.metrics import NonFinite
from crt_jax.runs.orbax_messages import QuietOrbax
from crt_jax.runs.train_state import TrainState, exchanged
from crt_jax.types import Params, Tree

ITEMS = ('params', 'optimizer', 'record')
SPARE_BYTES = 2**20  # for metadata, metrics and figures


class Checkpoints:
  """The checkpoints of one work directory, for the run that writes them."""

  def __init__(self, workdir: str | pathlib.Path, keep: int):
    self.workdir = bucket.place(workdir)
    self.directory = self.workdir / 'checkpoints'
    self.keep = keep
    self._quiet = QuietOrbax()
    self._quiet.__enter__()
    storage.retried(self.directory, self._set_damaged_metrics_aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('checkpoints can be opened')
      self._manager = self._open()  # collective, so no process may retry alone
    else:
      self._manager = storage.retried(self.directory, self._open)

  def _set_damaged_metrics_aside(self) -> None:
    for step in steps_on_disk(self.directory):
      if retention.has_damaged_metrics(self.directory / str(step)):
        warn(f'checkpoint {self.directory / str(step)} has lost its measured loss')
        self._move(f'{step}/metrics', f'damaged/{step}.metrics')

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      preservation_policy=retention.policy(self.keep),
      best_fn=retention.cross_entropy,
      best_mode='min',
      cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(absolute(self.directory), options=options, item_names=ITEMS)

  def save(self, state: TrainState, record: dict, cross_entropy: float | None = None) -> None:
    """Starts writing a checkpoint; copies the arrays first, so the state may be donated.

    Args:
      state: its `step` names the checkpoint; a step that is already there is left as it is.
      record: JSON values that the run wants back.
      cross_entropy: on the validation set at this step, if it was measured.

    Raises:
      OSError: this or the checkpoint before it could not be written.
      NonFinite: the state has a number that is not finite; nothing is written.
    """
    step, state = int(state.step), exchanged(state)
    if step in self._manager.all_steps():
      return
    with self._failures():
      self._wait()
      check_space(self.directory, state)
    arrays = describe(state)
    broken = [name for name, (*_, is_finite) in arrays.items() if not is_finite]
    if broken:
      raise NonFinite(step, f'{broken[0]} after its update', last_good=step - 1)
    record = {**record, 'step': step, 'checksum': CHECKSUM, 'arrays': arrays}
    metrics = None
    if cross_entropy is not None:
      record['validation_cross_entropy'] = cross_entropy
      metrics = {'cross_entropy': float(cross_entropy)} if math.isfinite(cross_entropy) else None
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      optimizer=ocp.args.StandardSave({'opt_state': state.opt_state, 'step': state.step}),
      record=ocp.args.JsonSave(signed(record)),
    )
    with self._failures():
      self._manager.save(step, args=items, metrics=metrics, force=True)

  def check(self) -> None:
    """Raises OSError if a checkpoint that is being written has failed."""
    with self._failures():
      self._check()

  def wait(self) -> None:
    """Returns when everything is on disk; raises OSError if writing failed."""
    with self._failures():
      self._wait()
      self._check()

  def _wait(self):
    while self._manager.is_saving_in_progress():
      self._check()
      time.sleep(0.01)
    self._manager.wait_until_finished()

  def _check(self):
    self._manager.check_for_errors()
    if self._quiet.failure is not None:
      raise self._quiet.failure

  def close(self) -> None:
    """Ends the background threads, also after a failed write."""
    if self._quiet.failure is not None and jax.process_count() > 1:
      return  # closing would wait for the others, which wait for the failed write
    try:
      self._manager.close()
    except Exception as error:
      # check() or wait() has raised the error; threads and tasks that also fail stay silent.
      logging.info('closing the checkpoints: %s', error)
      python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
    else:
      self._quiet.__exit__()

  def restore_latest(
    self, abstract: TrainState, with_new_optimizer: Callable[[Any, int], TrainState] | None = None
  ) -> tuple[TrainState, dict] | None:
    """Returns state and record of the newest complete checkpoint, None if there is none.

    Damaged checkpoints are moved to `damaged/` in the work directory, with a warning, so that their
    steps can be written again.

    Args:
      with_new_optimizer: makes a state with a new optimiser state of parameters and step; used if
        the saved optimiser state has another structure.

    Raises:
      OtherOptimizer: the optimiser state has another structure, and `with_new_optimizer` is None.
      OutOfReach: the newest could not be read, which says nothing against it.
      ValueError: there are checkpoints but none is whole, or one cannot be read by some of
        several processes, or the parameters have other shapes than the model.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      folder = self.directory / str(step)
      try:
        return damage.read(folder, read_state, self._manager, step, abstract, with_new_optimizer)
      except Damaged as error:
        self._set_aside(step, error)
    if steps:
      raise ValueError(
        f'{self.directory}: none of the checkpoints {steps} can be read (moved to '
        f'{self.workdir / "damaged"}); '
        'start again in a new --workdir'
      )
    return None

  def _set_aside(self, step: int, error: Exception) -> None:
    warn(
      f'checkpoint {self.directory / str(step)} is damaged ({error}); '
      'falling back to the one before'
    )
    self._move(str(step), f'damaged/{step}')
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'checkpoint {step} set aside')
    self._manager.close()
    self._manager = self._open()

  def _move(self, what: str, place: str) -> None:
    """Moves a part of `checkpoints/` to a numbered place in the work directory."""
    if jax.process_index() != 0:
      return
    if bucket.is_bucket(self.workdir):
      return bucket.opened(str(self.workdir)).move(f'{self.directory.name}/{what}', place)
    (self.workdir / place).parent.mkdir(exist_ok=True)
    number = 0
    while (self.workdir / f'{place}.{number}').exists():
      number += 1
    (self.directory / what).rename(self.workdir / f'{place}.{number}')

  def back_to_good(self, limit: int) -> int | None:
    """Moves checkpoints of non-finite losses to `diverged/`; returns the newest step left.

    It returns None if no step is left. The run then continues from that step.

    Args:
      limit: the last step that can be one, as the step after the next was not finite.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    good = next((step for step in steps if step <= limit and self._is_good(step)), None)
    for step in steps:
      if good is None or step > good:
        self._move(str(step), f'diverged/{step}')
    return good

  def _is_good(self, step: int) -> bool:
    try:
      record = damage.read(self.directory / str(step), read_record, self._manager, step)
    except Damaged:
      return False
    return record.get('validation_cross_entropy', 0.0) is not None

  def _failures(self):
    return _WriteFailures(self)


class _WriteFailures:
  """Turns any exception of a failed write into one OSError that says which checkpoint is left."""

  def __init__(self, checkpoints: Checkpoints):
    self._checkpoints = checkpoints

  def __enter__(self):
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ):
    if error is None or not isinstance(error, Exception):
      return
    directory = self._checkpoints.directory
    for unfinished in directory.glob('*.orbax-checkpoint-tmp'):
      shutil.rmtree(unfinished, ignore_errors=True)
    left = steps_on_disk(directory)
    good = f'the last good one is {directory / str(left[-1])}' if left else 'there is none yet'
    raise OSError(
      f'a checkpoint could not be written to {directory} ({one_line(error)}); {good}; '
      'free some space and run the same command again'
    ) from None


def check_space(directory: pathlib.Path, tree: Tree) -> None:
  """Raises OSError unless the arrays fit the disk, rather than write half a checkpoint."""
  if bucket.is_bucket(directory):
    return
  needed = sum(x.nbytes for x in jax.tree.leaves(tree)) + SPARE_BYTES
  free = shutil.disk_usage(directory).free
  if free < needed:
    raise OSError(f'No space left on device: {free:,} bytes free, {needed:,} needed')


def read_state(
  manager: ocp.CheckpointManager,
  step: int,
  abstract: TrainState,
  with_new_optimizer: Callable[[Any, int], TrainState] | None = None,
) -> tuple[TrainState, dict]:
  """Reads and verifies one checkpoint into the given shapes and shardings."""
  record = read_record(manager, step)
  check_shapes(record, {'params': abstract.params})
  try:
    check_optimizer(
      record, bucket.place(manager.directory) / str(step) / 'optimizer', abstract.opt_state
    )
  except OtherOptimizer:
    if with_new_optimizer is None:
      raise
    return with_new_optimizer(read_params(manager, step, abstract.params, record), step), record
  items = ocp.args.Composite(
    params=ocp.args.StandardRestore(abstract.params),
    optimizer=ocp.args.StandardRestore({'opt_state': abstract.opt_state, 'step': abstract.step}),
  )
  read = manager.restore(step, args=items)
  state = TrainState(read['optimizer']['step'], read['params'], read['optimizer']['opt_state'])
  verify(state, record)
  return exchanged(state), record


def load_record(workdir: str, step: int) -> dict:
  """Returns the record of a step's checkpoint, which describes its run."""
  with QuietOrbax(), reader(bucket.place(workdir) / 'checkpoints') as manager:
    return read_record(manager, step)


def load_params(
  workdir: str,
  step: int | None = None,
  mesh: Mesh | Callable[[Any], Mesh] | None = None,
) -> tuple[Any, dict, Any, int]:
  """Returns (config, params, tokenizer, step) of a checkpoint, for evaluation and generation.

  Args:
    workdir: of a run, finished or not; it is only read.
    step: which checkpoint; None takes the newest that is whole.
    mesh: where the parameters are to lie, whatever they were trained on, or what makes it of the
      config; None = one device.

  Raises:
    ValueError: no such run, checkpoint or step, a tokenizer that is not the checkpoint's, or a
      parameter that does not fit the mesh.
    OutOfReach: the checkpoint could not be read, which says nothing against it.
  """
  directory = bucket.place(workdir) / 'checkpoints'
  newest(workdir)
  steps = steps_on_disk(directory)
  if step is not None and step not in steps:
    raise ValueError(f'{directory}: no checkpoint of step {step}; there are {steps}')
  with QuietOrbax(), reader(directory) as manager:
    for candidate in [step] if step is not None else reversed(steps):
      folder = directory / str(candidate)
      try:
        record = damage.read(folder, read_record, manager, candidate)
        config = workdir_lib.config_of(record['config'])
        model = crt_jax.build(config.model)
        place = mesh if mesh is None or isinstance(mesh, Mesh) else mesh(config)
        abstract = abstract_params(model, place)
        params = damage.read(folder, read_params, manager, candidate, abstract, record)
      except Damaged as error:
        warn(f'checkpoint {folder} is damaged ({error})')
        continue
      return config, params, load_tokenizer(workdir, record), candidate
  raise ValueError(f'{directory}: no checkpoint can be read')


def load_tokenizer(workdir: str, record: dict) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a run; ValueError if the checkpoint's record names another one."""
  folder = bucket.local(workdir) / 'tokenizer'
  tokenizer = tokenizers.load(folder)
  if tokenizer.hash != record['data']['tokenizer']:
    raise ValueError(
      f'{folder} is not the tokenizer that the checkpoint of step {record["step"]} was trained '
      'with; put that one back'
    )
  return tokenizer


def reader(directory: pathlib.Path) -> ocp.CheckpointManager:
  """Returns a checkpoint manager that changes nothing in the directory."""
  options = ocp.CheckpointManagerOptions(read_only=True, lightweight_initialize=True)
  manager = functools.partial(ocp.CheckpointManager, options=options, item_names=ITEMS)
  return storage.retried(directory, manager, absolute(directory))


def absolute(directory: Any) -> Any:
  """Returns a directory as the absolute path that Orbax needs."""
  return directory if bucket.is_bucket(directory) else directory.absolute()


def abstract_params(model: Model, mesh: Mesh | None) -> Params:
  """Returns shapes and shardings of a model's parameters, on a mesh or on the first device."""
  shapes = jax.eval_shape(model.init, random_key(0))
  if mesh is None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, shapes)
  else:
    shardings = sharding.param_shardings(model.axes(), shapes, mesh)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def read_params(
  manager: ocp.CheckpointManager, step: int, abstract: Params, record: dict
) -> Params:
  """Reads and verifies the parameters of one checkpoint into the given shapes and shardings."""
  check_shapes(record, {'params': abstract})
  items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
  params = manager.restore(step, args=items)['params']
  verify({'params': params}, record)
  return params


def read_record(manager: ocp.CheckpointManager, step: int) -> dict:
  """Returns the JSON record of a checkpoint; raises Damaged if it is not what was saved."""
  record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))['record']
  check_record(record)
  return record


def newest(workdir: str) -> int:
  """Returns the step of a run's newest checkpoint; ValueError if it has none."""
  steps = steps_on_disk(bucket.place(workdir) / 'checkpoints')
  if not steps:
    why = '' if bucket.local(workdir).exists() else ' (no such directory)'
    raise ValueError(
      f'{workdir}: no checkpoint here{why}; give the --workdir of a run, or train one in it'
    )
  return steps[-1]
