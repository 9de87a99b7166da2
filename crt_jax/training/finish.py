"""What a run writes at its end: evaluation.json, figures and a text sample.

`--mode=eval` writes the same from a checkpoint.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from crt_jax import data, decoding, json_text, placing, sharding
from crt_jax.cluster import agreement
from crt_jax.cluster.preemption import StopSignal
from crt_jax.data.tokenizers import Tokenizer
from crt_jax.loading import Trained, load
from crt_jax.models.base import Model
from crt_jax.models.registry import model_class
from crt_jax.program import warn
from crt_jax.runs import bucket, checkpoint, workdir
from crt_jax.runs.provenance import origin
from crt_jax.training import ending, scoring
from crt_jax.training.scoring import Scoring
from crt_jax.training.terminal import show_any_text
from crt_jax.types import Params

if TYPE_CHECKING:
  from crt_jax.training.report import Reporter
  from crt_jax.training.startup import Run


def finish(run: 'Run', scored: Scoring, reporter: 'Reporter') -> None:
  """Evaluates, draws figures, writes a sample, and marks the run as finished."""
  say = reporter.say
  say('evaluating')
  reporter.end_bar()
  config, step = run.config, run.config.train.steps
  results = scored.score(run.state.evaluated, run.directory.path, step)
  say(ending.scores(run.model, results))
  is_exact = run.model.has_sequential_form
  say('\nit writes:' if is_exact else 'no sample: the model has no sequential form')
  text = sample(run.model, run.state.evaluated, run.dataset.tokenizer, config)
  if text is not None:
    say(ending.sample(text))
  say('drawing figures')
  if jax.process_index() == 0:
    record = {
      'step': step,
      'training_seconds': run.clock.seconds,
      'results': results,
      'origin': origin(),
    }
    drawn = write(run.directory, config, record, text)
    reporter.conclude(ending.numbers(run.model, results), text, drawn)
    workdir.finish(run.directory, step, run.clock.seconds)
    scoring.forget(run.directory.path)
    bucket.upload(run.directory.name)
  say(f'finished; everything is in {run.directory.name}')
  say(ending.next_commands(run.model, config, run.directory.name))


def evaluate_checkpoint(path: str, stop: StopSignal | None = None) -> None:
  """Evaluates the newest checkpoint of a work directory and rewrites its records.

  One process evaluates on its first device, several on the mesh of the config. An interrupted
  evaluation continues where it stopped.

  Raises:
    ValueError: there is no such run or checkpoint, the text is not the one it was trained on, or
      the mesh of the config does not fit the devices of several processes.
  """
  if stop is not None:
    stop.standing = lambda: 'what was scored is kept'
  show_any_text()
  if jax.process_count() == 1:
    run, place, on_mesh = open_run(path), placing.ON_ONE_DEVICE, contextlib.nullcontext()
  else:
    run = open_run(path, mesh_of)
    mesh = mesh_of(run.config)
    place, on_mesh = placing.on_mesh(run.config.data.batch_size, mesh), jax.set_mesh(mesh)
  directory = workdir.Workdir(path)
  with on_mesh:
    scored = Scoring.rehearsed(run.model, run.params, run.dataset, run.config, place)
    if jax.process_index() == 0:
      print(scored.estimate(), flush=True)
    results = scored.score(run.params, directory.path, run.step)
    text = sample(run.model, run.params, run.dataset.tokenizer, run.config)
  if jax.process_index() == 0:
    print(ending.scores(run.model, results))
    record = {'step': run.step, 'results': results, 'origin': origin()}
    write(directory, run.config, record, text)
    scoring.forget(directory.path)
    bucket.upload(path)
    print(f'checkpoint of step {run.step}; written to {directory.name}/{directory.evaluation.name}')


def mesh_of(config: ConfigDict) -> Mesh:
  """Returns the mesh of a run over all devices; ValueError if mesh or batch does not fit."""
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(config.data.batch_size, 1, mesh)
  return mesh


@dataclasses.dataclass(frozen=True)
class TrainedRun(Trained):
  """The newest checkpoint of a work directory, with its dataset."""

  dataset: Any


def open_run(path: str, mesh: Callable[[Any], Mesh] | None = None) -> TrainedRun:
  """Opens a trained run for evaluation; `mesh` maps its config to the mesh for the parameters.

  Raises:
    ValueError: there is no such run or checkpoint, or the text is not the one it was trained on.
  """
  trained = load(path, mesh=mesh)
  dataset = data.prepare(trained.config.data)
  agreement.require_equal_data(dataset)
  data.check_identity(path, checkpoint.load_record(path, trained.step)['data'], dataset.identity)
  return TrainedRun(**vars(trained), dataset=dataset)


def sample(model: Model, params: Params, tokenizer: Tokenizer, config: ConfigDict) -> str | None:
  """Returns config.sample.prompt and its continuation by the exact recurrence.

  It returns None if the model has no exact form or its logits are not finite.
  """
  if not model.has_sequential_form:
    return None
  arguments = decoding.sample_arguments(config, tokenizer)
  try:
    [tokens] = decoding.generate(model, params, **arguments)
  except decoding.NotFinite as error:
    warn(f'no sample: {error}')
    return None
  return tokenizer.decode(arguments['prompts'][0] + tokens)


def write(
  directory: workdir.Workdir, config: ConfigDict, record: dict, text: str | None
) -> list[pathlib.Path]:
  """Writes evaluation.json and the sample, and draws the figures from the run's records.

  Returns: the figures, as PNG.
  """
  from crt_jax.evaluation import figures  # matplotlib, half a second that no start waits for

  json_text.write(directory.evaluation, record)
  if text is not None:
    (directory.folder('samples') / f'step_{record["step"]}.txt').write_text(text + '\n', 'utf-8')
  folder, origin = directory.folder('figures'), record['origin']
  title = f'{config.model.name}, {config.data.corpus}, step {record["step"]}'
  drawn = []
  if record['step']:
    drawn.append(folder / 'training')
    figures.training_curve(directory.metrics, drawn[-1], origin, title)
  counted = model_class(config.model.name).passes
  passes = counted.label if counted else ''
  for name, results in ending.by_set(record['results']).items():
    if len({row['depth'] for row in results['sampled'] if math.isfinite(row['perplexity'])}) > 1:
      drawn.append(folder / f'convergence{name and "_" + name}')
      figures.perplexity_against_depth(results, drawn[-1], origin, title, passes)
  return [figures.files_of(file)[0] for file in drawn]
