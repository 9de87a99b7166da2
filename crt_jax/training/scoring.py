"""The evaluation at the end of a run: rehearsed before the first step, resumable.

The rehearsal compiles all programs and measures their time. Progress is kept on disk, so that an
interrupted evaluation continues where it stopped.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from crt_jax import data, evaluation, json_text
from crt_jax.cluster import agreement
from crt_jax.models.base import Model
from crt_jax.placing import Placement
from crt_jax.runs import workdir
from crt_jax.runs.provenance import origin
from crt_jax.training.terminal import Task, count, duration

PARTIAL = 'evaluation.partial.json'


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How a run is evaluated.

  Attributes:
    place: which rows of a batch this process reads, and how they come onto its devices.
    parts: what is scored, in order.
    seconds: of a batch in each form, as measured by one.
  """

  model: Any
  dataset: Any
  config: Any
  place: Placement
  parts: list[evaluation.Part]
  seconds: dict[evaluation.Form, float]

  @classmethod
  def rehearsed(
    cls, model: Model, params: dict, dataset: data.Dataset, config: ConfigDict, place: Placement
  ) -> 'Scoring':
    """Scores one batch in every form, which compiles all programs and measures their time."""
    with Task('trying the evaluation', 1) as task:
      seconds = evaluation.rehearse(model, params, dataset, config, place, task.update)
    parts = evaluation.plan(evaluation.scoring_model(model, config), dataset, config)
    return cls(model, dataset, config, place, parts, seconds)

  def estimate(self) -> str:
    """Returns a line: what is scored at the end, and the expected time."""
    tokens = {(part.kind, part.set): part.tokens for part in self.parts}
    forms = len({part.form for part in self.parts})
    scored, seconds = count(sum(tokens.values())), sum(map(self._cost, self.parts))
    line = f'evaluation    {scored} tokens in {forms} form(s) at the end, about {duration(seconds)}'
    most = max((part.tokens for part in self.parts if part.protocol == 'leading'), default=0)
    line += f'; the first {count(most)} of a long set (more: eval.whole_tokens)' if most else ''
    return line + ('; eval.whole=False for a sample alone' if self.config.eval.whole else '')

  def score(self, params: dict, path: pathlib.Path, step: int) -> dict:
    """Returns what evaluation.protocol returns; its progress file stays until `forget`."""
    file = path / PARTIAL
    made = origin()
    identity = {
      'step': step,
      'config': workdir.plain(self.config),
      'data': self.dataset.identity,
      'origin': {name: made[name] for name in ('versions', 'device', 'devices')},
    }
    found = agreement.of_first('what was scored', read(file))
    write = functools.partial(json_text.write, file) if jax.process_index() == 0 else ignore
    with Task('evaluation', sum(map(self._cost, self.parts))) as task:
      ledger = evaluation.Ledger(identity, found, write, functools.partial(self._show, task))
      return evaluation.protocol(self.model, params, self.dataset, self.config, self.place, ledger)

  def _show(self, task: Task, name: str, batches: int) -> None:
    done = 0.0
    for part in self.parts:
      if part.name == name:
        break
      done += self._cost(part)
    task.update(done + batches * self.seconds[part.form])

  def _cost(self, part: evaluation.Part) -> float:
    return part.batches * self.seconds[part.form]


def read(file: pathlib.Path) -> dict | None:
  """Returns the saved progress of an evaluation; None if there is none or it is damaged."""
  try:
    return workdir.read_json(file)
  except (FileNotFoundError, ValueError):
    return None


def forget(path: pathlib.Path) -> None:
  """Removes the progress file of an evaluation whose results are written."""
  (path / PARTIAL).unlink(missing_ok=True)


def ignore(value: dict) -> None:
  """Writes nothing; used on every process but the first."""
