"""The work directory of a run: its files, and whether a command may continue in it.

config.json     the resolved config, where it came from, and every fork
sharding.txt    which part of every parameter lies on a device, and its bytes
metrics.jsonl   one object a line, in order of `step`
tensorboard/    the same as events
tracking.json   ids of the run in trackers (--track)
checkpoints/    see checkpoint.py; damaged/ holds those that are not what was written, diverged/
                those from which a step was not finite
tokenizer/      what turns text into the token ids of this run
figures/  samples/  evaluation.json
profile/        of the steps train.profile, for TensorBoard or Perfetto
failure.txt     how it last failed, until it is started again (standing.py)
attempts/       of a run that a sweep started: its output, and why an attempt failed
lock            who trains here (lock.py); empty when nobody does
finished.json   written last
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import ml_collections
from ml_collections import ConfigDict

from crt_jax import json_text, schema, storage
from crt_jax.cluster.launcher import wait_until
from crt_jax.runs import bucket
from crt_jax.runs.bucket import hold
from crt_jax.runs.lock import NAME as LOCK
from crt_jax.runs.provenance import now, origin

CONFIG = 'config.json'
FINISHED = 'finished.json'
ATTEMPTS = 'attempts'  # may exist before the run starts
SECONDS_TO_APPEAR = 30  # for files of another host on a slow network file system


class Workdir:
  """A directory that `open_workdir` has accepted for a run."""

  def __init__(self, path: str | pathlib.Path):
    self.name = str(bucket.place(path))
    self.path = bucket.local(path)

  @property
  def metrics(self) -> pathlib.Path:
    return self.path / 'metrics.jsonl'

  @property
  def evaluation(self) -> pathlib.Path:
    return self.path / 'evaluation.json'

  def folder(self, name: str) -> pathlib.Path:
    """Returns a subdirectory, created if it is missing."""
    path = self.path / name
    path.mkdir(exist_ok=True)
    return path


def finished_step(path: str | pathlib.Path) -> int | None:
  """Returns the last step of a finished run, else None."""
  marker = bucket.local(path) / FINISHED
  return read_json(marker, 'step')['step'] if marker.exists() else None


def check_workdir(path: str | pathlib.Path, config: ConfigDict, fork: bool) -> dict[str, list]:
  """Checks, without writing, whether a run with this config may use the directory.

  Returns:
    The fields that a fork changes: name -> [saved, now]; {} for a new run or an unchanged config.

  Raises:
    ValueError: the directory holds something else, or a run with another config and `fork` is off.
  """
  path, folder = bucket.place(path), bucket.local(path)
  if not folder.exists():
    return {}
  if not folder.is_dir():
    raise ValueError(f'--workdir={path} is a file; choose a directory')
  if not (folder / CONFIG).exists():
    entries = sorted(
      p.name
      for p in folder.iterdir()
      if not p.name.startswith(CONFIG) and p.name not in (ATTEMPTS, LOCK)
    )
    if entries:
      listed = ', '.join(entries[:3])
      raise ValueError(
        f'--workdir={path} holds something else ({listed}) and no {CONFIG}; choose a new or '
        'empty directory'
      )
    return {}
  changed = changed_fields(saved_config(path), plain(config))
  if changed and not fork:
    listed = ', '.join(f'{name} (was {old!r}, now {new!r})' for name, (old, new) in changed.items())
    raise ValueError(
      f'--workdir={path} holds a run with another config: {listed}; use a new --workdir, '
      'or --fork to continue this run with the changed config'
    )
  return changed


def open_workdir(path: str | pathlib.Path, config: ConfigDict, fork: bool = False) -> Workdir:
  """Creates the directory if needed, and locks it until the process ends.

  Call it after check_workdir, before anything is compiled.

  Raises:
    ValueError: it cannot be written, another process is training in it, or one with another config
      has begun since check_workdir.
  """
  workdir = Workdir(path)
  if jax.process_index() != 0:
    return workdir
  try:
    workdir.path.mkdir(parents=True, exist_ok=True)
    hold(path)
    check_workdir(path, config, fork)  # another process may have been faster
    begin(workdir, config)
    bucket.upload(path)
  except storage.OutOfReach:
    raise
  except OSError as error:
    raise ValueError(
      f'--workdir={path} cannot be written ({error.strerror or error}); choose another directory'
    ) from None
  return workdir


def begin(workdir: Workdir, config: ConfigDict) -> None:
  """Writes the first files of a directory, unless they exist."""
  if not (workdir.path / CONFIG).exists():
    value = {'config': plain(config), 'origin': origin(), 'forks': []}
    json_text.write(workdir.path / CONFIG, value)
  workdir.metrics.touch()


def seen(workdir: Workdir) -> dict:
  """Returns what this process sees in a directory that process 0 has opened.

  All processes have to see the same; otherwise parts of checkpoints would go to several places.
  """
  file = workdir.path / CONFIG

  def appeared() -> bool:
    if jax.process_index() != 0:
      bucket.fetch(workdir.name)
    return file.exists()

  wait_until(appeared, SECONDS_TO_APPEAR)
  digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else 'not there'
  return {CONFIG: digest}


def record_fork(workdir: Workdir, config: ConfigDict, changed: dict[str, list], step: int) -> None:
  """Records that the run continues with another config from a step on, unfinished again."""
  if jax.process_index() == 0:
    saved = read_json(workdir.path / CONFIG, 'config', 'forks')
    fork = {'after_step': step, 'changed': changed, 'origin': origin()}
    (workdir.path / FINISHED).unlink(missing_ok=True)
    json_text.write(
      workdir.path / CONFIG,
      {**saved, 'config': plain(config), 'forks': [*saved['forks'], fork]},
    )


def finish(workdir: Workdir, step: int, seconds: float) -> None:
  """Marks a run as finished; running its command again changes nothing."""
  if jax.process_index() == 0:
    value = {'step': step, 'training_seconds': seconds, 'at': now()}
    json_text.write(workdir.path / FINISHED, value)


def plain(config: ConfigDict) -> dict:
  """Returns a config as plain JSON values with references resolved."""
  return json.loads(json.dumps(config.to_dict()))


def config_of(saved: dict) -> ml_collections.ConfigDict:
  """Returns the locked ConfigDict of a config read from JSON; lists become tuples again."""
  return schema.completed(_with_tuples(saved))


def _with_tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _with_tuples(member) for name, member in value.items()}
  return tuple(value) if isinstance(value, list) else value


def saved_config(path: str | pathlib.Path) -> dict:
  """Returns the config of the run in a work directory, as plain JSON."""
  file = bucket.local(path) / CONFIG
  if not file.exists():
    raise ValueError(f'{path}: no {CONFIG} here, so this is not the --workdir of a run')
  return read_json(file, 'config')['config']


def changed_fields(saved: dict, config: dict) -> dict[str, list]:
  """Returns dotted name -> [saved, now] of every field in which two plain configs differ.

  A field that was added after the config was saved counts as saved with its default. The section
  `about` and the steps to profile do not count.
  """
  old, new = schema.flat(saved), schema.flat(config)
  for name in new.keys() - old.keys():
    default = schema.default(name, old.get('model.name', ''))
    if default is not None:
      old[name] = default
  return {
    name: [old.get(name, '(absent)'), new.get(name, '(absent)')]
    for name in [*old, *(name for name in new if name not in old)]
    if not name.startswith((f'{schema.ABOUT}.', 'train.profile'))
    and (name not in old or name not in new or old[name] != new[name])
  }


def read_json(path: pathlib.Path, *names: str) -> dict:
  """Reads a JSON object that must have some names.

  Raises:
    ValueError: it is damaged; names the file.
    OutOfReach: it cannot be read at the moment.
  """
  try:
    found = json_text.parse(storage.retried(path, path.read_bytes))
  except ValueError as error:
    raise ValueError(f'{path} is damaged: not JSON ({error}); use a new --workdir') from None
  missing = [name for name in names if not isinstance(found, dict) or name not in found]
  if missing:
    raise ValueError(f'{path} is damaged: {missing[0]!r} is missing; use a new --workdir')
  return found
