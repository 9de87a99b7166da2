"""What a run leaves behind at its end: evaluation.json, figures and a sample of text. Also `--mode=eval`, from a checkpoint."""

from collections.abc import Callable

import jax

import crt_jax
from crt_jax import data, decoding, evaluation, sharding
from crt_jax.evaluation import figures
from crt_jax.training import checkpoint, workdir


def finish(run, say: Callable[[str], None]) -> None:
  """Evaluates, writes figures and a sample, and marks the run as finished."""
  say('evaluating')
  place = lambda batch: sharding.place_batch(batch, sharding.batch_sharding(run.mesh))  # noqa: E731
  results = evaluation.protocol(run.model, run.state.params, run.dataset, run.config, place)
  record = {
    'step': run.config.train.steps,
    'training_seconds': run.clock.seconds,
    'results': results,
    'origin': workdir.origin(),
  }
  say(table(results))
  if jax.process_count() > 1:
    params = jax.device_put(run.state.params, sharding.replicated(run.mesh))
  else:
    params = run.state.params
  if jax.process_index() == 0:
    workdir.write_json(run.directory.evaluation, record)
    draw_figures(run.directory, run.config, record)
    text = write_sample(run.directory, run.model, params, run.dataset.tokenizer, run.config, run.config.train.steps)
    say(f'sample: {text!r}')
    say(f'finished; everything is in {run.directory.path}')
  workdir.finish(run.directory, run.config.train.steps, run.clock.seconds)


def evaluate_checkpoint(path: str) -> None:
  """Evaluates the newest checkpoint of a work directory as its config says, and writes evaluation.json and the figures.

  Raises:
    ValueError: there is no such run or checkpoint, or the text is not the one it was trained on.
  """
  config, params, tokenizer, step = checkpoint.load_params(path)
  model = crt_jax.build(config.model)
  dataset = data.prepare(config.data)
  if dataset.tokenizer.hash != tokenizer.hash:
    raise ValueError(
      f'{path}: the checkpoint was trained with another tokenizer than data.tokenizer={config.data.tokenizer!r} now gives; '
      'restore the corpus it was trained on'
    )
  results = evaluation.protocol(model, params, dataset, config)
  print(table(results))
  directory = workdir.Workdir(path)
  record = {'step': step, 'results': results, 'origin': workdir.origin()}
  workdir.write_json(directory.evaluation, record)
  draw_figures(directory, config, record)
  print(f'step {step}; written to {directory.evaluation}')


def draw_figures(directory: workdir.Workdir, config, record: dict) -> None:
  """Draws the figures from the run's own records: training.png, and convergence.png where there are passes to count."""
  folder, origin = directory.folder('figures'), record['origin']
  title = f'{config.model.name}, {config.data.corpus}, step {record["step"]}'
  figures.training_curve(directory.metrics, folder / 'training.png', origin, title)
  results = record['results']
  if any(row['depth'] for row in results['sampled']):
    figures.perplexity_against_depth(results, folder / 'convergence.png', origin, title)


def write_sample(directory: workdir.Workdir, model, params, tokenizer, config, step: int) -> str:
  """Continues config.sample.prompt by the exact recurrence; returns the text, also saved under samples/."""
  prompt = tokenizer.encode(config.sample.prompt)
  sampling = decoding.Sampling(
    temperature=config.sample.temperature, top_k=config.sample.top_k, top_p=config.sample.top_p
  )
  [tokens] = decoding.generate(
    model,
    params,
    [prompt],
    config.sample.num_tokens,
    context=len(prompt) + config.sample.num_tokens,
    sampling=sampling,
    seed=config.sample.seed,
  )
  text = tokenizer.decode(prompt + tokens)
  (directory.folder('samples') / f'step_{step}.txt').write_text(text + '\n')
  return text


def table(results: dict) -> str:
  """Returns one line per form and protocol: perplexity and bits per byte."""
  lines = ['protocol  form        K   perplexity  bits per byte']
  for name in ('sampled', 'whole'):
    for row in results.get(name, []):
      depth = '' if row['depth'] is None else row['depth']
      note = '' if row['is_inference_metric'] else '  (not a way to use the model)'
      lines.append(
        f'{name:8}  {row["form"]:10}  {depth:>2}  {row["perplexity"]:10.3f}  {row["bits_per_byte"]:13.4f}{note}'
      )
  return '\n'.join(lines)
