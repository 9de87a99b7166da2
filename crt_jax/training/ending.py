"""What a person reads at the end of a run: headline, all scores, a text, next commands."""

import importlib.util
import shlex
import shutil

from ml_collections import ConfigDict

from crt_jax.models.base import Model
from crt_jax.program import install, program, typed

PROTOCOLS = {
  'random': 'random windows',
  'first': 'first windows',
  'whole': 'all of it',
  'leading': 'its beginning',
}


def scores(model: Model, results: dict) -> str:
  """Returns the headline and the table of what `evaluation.protocol` found."""
  return f'{headline(model, results)}\n\n{table(model, results)}'


def headline(model: Model, results: dict) -> str:
  """Returns the score of each validation set in the form in which the model is used."""
  rows = [principal(model, of_set) for of_set in by_set(results).values()]
  how = form(model, rows[0])
  solved = [row for row in rows if shares(row)]
  if solved:
    found = [f'{row["solved"]} of {len(shares(row))} answers of {row["set"]}' for row in solved]
    return f'solved: {", ".join(found)}, by {how}'
  found = [f'{row["bits_per_byte"]:.3f} on {row["set"]}' for row in rows]
  return (
    f'bits per byte: {", ".join(found)}, by {how}\n'
    '  what the model needs to say a byte of text that is new to it: 8 is knowing nothing, less\n'
    '  is better, and models with other vocabularies can be compared'
  )


def numbers(model: Model, results: dict) -> dict[str, float]:
  """Returns the scores of the headline by their tags in TensorBoard and trackers."""
  rows = {name: principal(model, of_set) for name, of_set in by_set(results).items()}
  return {
    f'evaluation/{score}{name and "_" + name}': row[score]
    for name, row in rows.items()
    for score in ('perplexity', 'bits_per_byte', 'solved')
    if row.get(score) is not None
  }


def principal(model: Model, results: dict) -> dict:
  """Returns a set's most informative row: most text, the form in which the model is used."""
  rows = results.get('whole') or results['sampled']
  exact = [row for row in rows if row['form'] == 'sequential']
  as_trained = [row for row in rows if row['depth'] == model.resolve_depth(None)]
  return (exact or as_trained or rows)[-1]


def by_set(results: dict) -> dict[str, dict]:
  """Returns the results of each validation set by name; the name is '' if there is only one."""
  names = dict.fromkeys(row['set'] for row in results['sampled'])
  if len(names) == 1:
    return {'': results}
  kinds = [kind for kind in ('sampled', 'whole') if kind in results]
  return {
    name: {kind: [row for row in results[kind] if row['set'] == name] for kind in kinds}
    for name in names
  }


def table(model: Model, results: dict) -> str:
  """Returns one line per validation set, scored part and form of the model."""
  head = ['text', 'scored', 'tokens', 'the model as', 'perplexity', 'bits per byte']
  rows = [row for kind in ('sampled', 'whole') for row in results.get(kind, [])]
  lines = [head]
  for row in rows:
    last = ' '.join(f'{share:.2f}' for share in shares(row)) or f'{row["bits_per_byte"]:.4f}'
    how = form(model, row) + ('' if row['is_inference_metric'] else ' *')
    scored, perplexity = PROTOCOLS[row['protocol']], f'{row["perplexity"]:.3f}'
    lines.append([row['set'], scored, f'{row["targets"]:,}', how, perplexity, last])
  if any(map(shares, rows)):
    head[-1] = 'right answers'
  return _aligned(lines, '<<><>>', rows)


def table_of_tasks(model: Model, rows: list[dict]) -> str:
  """Returns one line per task and metric of `evaluation.harness`, with a column per form.

  Below the columns it gives the largest of their standard errors.
  """
  scored: dict[tuple, dict[str, dict]] = {}
  for row in rows:
    line = scored.setdefault((row['task'], row['documents'], row['metric']), {})
    line[short_form(model, row) + ('' if row['is_inference_metric'] else ' *')] = row
  forms = list(next(iter(scored.values()), ()))
  lines = [['task', 'documents', 'metric', *forms, '+-']]
  for (task, documents, metric), of_form in scored.items():
    errors = [row['stderr'] for row in of_form.values() if row['stderr'] is not None]
    values = [*(row['value'] for row in of_form.values()), *([max(errors)] if errors else [])]
    numbers = [f'{value:.4f}' if abs(value) < 100 else f'{value:.1f}' for value in values]
    lines.append([task, str(documents or ''), metric, *numbers, *([] if errors else [''])])
  return _aligned(lines, '<><>' + '>' * len(forms), rows)


def _aligned(lines: list[list[str]], align: str, rows: list[dict]) -> str:
  """Returns an aligned table, with a note about rows marked by a star."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    '  '.join(f'{c:{a}{w}}' for c, a, w in zip(line, align, widths, strict=True)).rstrip()
    for line in lines
  ]
  is_usable = all(row['is_inference_metric'] for row in rows)
  return '\n'.join(text if is_usable else [*text, '* not a way to write text with it'])


def shares(row: dict) -> list[float]:
  """Returns the shares of correct answers of a task."""
  return [share for field, share in row.items() if field.startswith('accuracy_')]


def form(model: Model, row: dict) -> str:
  """Returns in words how the model was used for a row."""
  if row['form'] == 'sequential':
    return 'exact recurrence'
  if row['depth'] is None or model.passes is None:
    name = model.config.name
    return 'a transformer' if name == 'transformer' else name
  return f'{model.passes.letter}={row["depth"]} {model.passes.name}'


def short_form(model: Model, row: dict) -> str:
  """Returns the form in one word: 'exact', 'K=3', or 'score' if there is only one form."""
  if row['form'] == 'sequential':
    return 'exact'
  return f'{model.passes.letter}={row["depth"]}' if model.passes else 'score'


def sample(text: str) -> str:
  """Returns a text sample, formatted for the terminal."""
  return '\n'.join(['', *(f'  {line}' for line in text.splitlines()), ''])


def next_commands(model: Model, config: ConfigDict, path: object) -> str:
  """Returns commands to use a finished run: generate, TensorBoard, evaluate again."""
  here = shlex.quote(str(path))
  own = f' --allow_model={config.model.name}' if ':' in config.model.name else ''
  main = program()
  generate = typed({'crt-train': 'crt-generate'}.get(main, 'python -m experiments.generate'))
  prompt = f'--prompt={shlex.quote(config.sample.prompt)} --num_tokens=120'
  look = f'{typed("tensorboard")} --logdir={here}/tensorboard'
  if not (importlib.util.find_spec('tensorboard') or shutil.which('tensorboard')):
    look = f'{install("tensorboard")} && {look}'
  lines = [
    f'  {look}    # or look into {path}/figures',
    f'  {typed(main)} --mode=eval --workdir={here}{own}',
  ]
  if model.has_sequential_form:
    lines.insert(0, f'  {generate} --workdir={here} {prompt}{own}')
  return '\n'.join(['next:', *lines])
