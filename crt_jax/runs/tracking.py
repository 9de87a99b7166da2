"""Experiment trackers, `--track`: Weights & Biases or trackio, by the same calls."""

import importlib
import importlib.util
import os
import pathlib
import sys
import uuid

from crt_jax import json_text
from crt_jax.program import install
from crt_jax.runs.workdir import read_json

ID = 'tracking.json'  # so that a continued run is the same run in the tracker


def check(name: str) -> None:
  """Raises ValueError, with the command that installs it, if a tracker is not installed."""
  if name and name not in sys.modules and importlib.util.find_spec(name) is None:
    raise ValueError(f'--track={name} needs {name}; {install(name)}')


class Tracker:
  """One run in a tracker; the tracker's own variables select server and offline mode."""

  def __init__(self, name: str, folder: pathlib.Path, config: dict):
    """Starts the tracker's run, or continues it."""
    file, fresh = folder / ID, uuid.uuid4().hex[:8]
    known = {name: fresh} | (read_json(file) if file.exists() else {})
    json_text.write(file, known)
    self._is_wandb = name == 'wandb'
    if self._is_wandb:
      options = {'id': known[name], 'name': folder.name, 'dir': str(folder)}
    else:
      options = {'name': f'{folder.name}-{known[name]}'}
    project = os.environ.get(f'{name.upper()}_PROJECT', 'crt_jax')
    self._library = importlib.import_module(name)
    self._run = self._library.init(project=project, config=config, resume='allow', **options)
    if self._is_wandb:
      self._run.define_metric('*', step_metric='step')

  def write(self, step: int, values: dict) -> None:
    """Logs the values of a step."""
    if self._is_wandb:  # its own step counter cannot go back to a checkpoint
      self._run.log({'step': step, **values})
    else:
      self._run.log(values, step=step)

  def conclude(
    self, step: int, scores: dict[str, float], text: str | None, figures: list[pathlib.Path]
  ) -> None:
    """Logs the results of the end of a run."""
    images = {f'figures/{file.stem}': self._library.Image(str(file)) for file in figures}
    self.write(step, scores | images | ({} if text is None else {'sample': text}))

  def close(self) -> None:
    """Ends the tracker's run; after an error it counts as failed if the tracker supports that."""
    failed = {'exit_code': 1} if self._is_wandb and sys.exc_info()[0] is not None else {}
    self._run.finish(**failed)
