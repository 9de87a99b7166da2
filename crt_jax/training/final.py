"""What a run leaves behind at its end: evaluation.json, figures and a sample of text. Also
`--mode=eval`, from a checkpoint."""

from collections.abc import Callable

import jax

import crt_jax
from crt_jax import data, decoding, evaluation
from crt_jax.evaluation import figures
from crt_jax.training import checkpoint, workdir
from crt_jax.training.origin import origin


def finish(run, say: Callable[[str], None]) -> None:
  """Evaluates, draws, writes a sample, and marks the run as finished."""
  say('evaluating')
  config, step = run.config, run.config.train.steps
  results = evaluation.protocol(run.model, run.state.params, run.dataset, config, run.place)
  results |= evaluation.answers(run.model, run.state.params, run.dataset, config, run.place)
  say(table(results))
  text = sample(run.model, run.state.params, run.dataset.tokenizer, config.sample)
  say(f'sample: {text!r}')
  if jax.process_index() == 0:
    record = {
      'step': step,
      'training_seconds': run.clock.seconds,
      'results': results,
      'origin': origin(),
    }
    write(run.directory, config, record, text)
    workdir.finish(run.directory, step, run.clock.seconds)
  say(f'finished; everything is in {run.directory.path}')


def evaluate_checkpoint(path: str) -> None:
  """Evaluates the newest checkpoint of a work directory as its config says, and writes its records
  anew.

  Raises:
    ValueError: there is no such run or checkpoint, or the text is not the one it was trained on.
  """
  config, params, tokenizer, step = checkpoint.load_params(path)
  model = crt_jax.build(config.model)
  dataset = data.prepare(config.data)
  if dataset.tokenizer.hash != tokenizer.hash:
    raise ValueError(
      f'{path}: data.tokenizer={config.data.tokenizer!r} now gives another tokenizer than the '
      'checkpoint was trained with; '
      'restore the corpus that it was made from'
    )
  results = evaluation.protocol(model, params, dataset, config)
  results |= evaluation.answers(model, params, dataset, config)
  print(table(results))
  text = sample(model, params, tokenizer, config.sample)
  directory = workdir.Workdir(path)
  record = {'step': step, 'results': results, 'origin': origin()}
  write(directory, config, record, text)
  print(f'checkpoint of step {step}; written to {directory.evaluation}')


def sample(model, params, tokenizer, config) -> str:
  """Returns config.sample.prompt and its continuation by the exact recurrence."""
  prompt = tokenizer.encode(config.prompt)
  if not prompt:
    raise ValueError('sample.prompt is empty; give at least one character')
  sampling = decoding.Sampling(
    temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
  )
  [tokens] = decoding.generate(
    model,
    params,
    [prompt],
    config.num_tokens,
    context=len(prompt) + config.num_tokens,
    sampling=sampling,
    seed=config.seed,
  )
  return tokenizer.decode(prompt + tokens)


def write(directory: workdir.Workdir, config, record: dict, text: str) -> None:
  """Writes evaluation.json and the sample, and draws the figures from the run's own records."""
  workdir.write_json(directory.evaluation, record)
  (directory.folder('samples') / f'step_{record["step"]}.txt').write_text(text + '\n')
  folder, origin = directory.folder('figures'), record['origin']
  title = f'{config.model.name}, {config.data.corpus}, step {record["step"]}'
  figures.training_curve(directory.metrics, folder / 'training.png', origin, title)
  if any(row['depth'] for row in record['results']['sampled']):
    figures.perplexity_against_depth(record['results'], folder / 'convergence.png', origin, title)


def table(results: dict) -> str:
  """Returns one line per protocol and form: perplexity and bits per byte, or shares of right
  answers."""
  lines = ['protocol  form         K  perplexity  bits per byte']
  for name in ('sampled', 'whole'):
    for row in results.get(name, []):
      depth = '' if row['depth'] is None else row['depth']
      note = '' if row['is_inference_metric'] else '  (not a way to use the model)'
      bits = '' if row['bits_per_byte'] is None else f'{row["bits_per_byte"]:.4f}'
      lines.append(
        f'{name:8}  {row["form"]:10}  {depth:>2}  {row["perplexity"]:10.3f}  {bits:>13}{note}'
      )
  for row in results.get('answers', []):
    shares = [share for field, share in row.items() if field.startswith('accuracy_')]
    depth = '' if row['depth'] is None else row['depth']
    lines.append(
      f'answers   {row["form"]:10}  {depth:>2}  {row["solved"]} of {len(shares)} solved: '
      + ' '.join(f'{share:.2f}' for share in shares)
    )
  return '\n'.join(lines)
