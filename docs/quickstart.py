"""What README.md and docs/crt.md show of the quickstart, and the diagrams of the models.

python -m experiments.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m docs.publish --quickstart=runs/quickstart
"""

import json
import pathlib

import numpy as np

from crt_jax.cli.user_errors import Mistake
from crt_jax.keys import random_key
from experiments import pages

SAMPLE_CHARACTERS = 400


def texts(record: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the reached scores, and the scores by number of passes."""
  from crt_jax.evaluation import figures
  from docs import diagrams

  diagrams.crt_recurrence(drawn / 'crt_recurrence.png')
  diagrams.crt_passes(drawn / 'crt_passes.png', measured_gap(passes=6, positions=5))
  diagrams.cart(drawn / 'cart.png')
  convergence = drawn / 'quickstart_convergence.png'
  figures.perplexity_against_depth({'whole': record['results']}, convergence, record['origin'])
  return {'README.md': reached(record), 'docs/crt.md': by_depth(record)}


def read(run: pathlib.Path, name: str) -> dict:
  """Returns a run's facts for the documentation, as plain JSON without private paths.

  Raises:
    Mistake: the run is not finished, or was evaluated without the exact recurrence.
  """
  from crt_jax import accounting

  if not (run / 'finished.json').exists():
    raise Mistake(f'{run}: no finished run here; python -m experiments.main --workdir={run} ...')
  config = json.loads((run / 'config.json').read_text('utf-8'))
  evaluation = json.loads((run / 'evaluation.json').read_text('utf-8'))
  finished = json.loads((run / 'finished.json').read_text('utf-8'))
  protocol = 'whole' if 'whole' in evaluation['results'] else 'sampled'
  rows = evaluation['results'][protocol]
  if not any(row['form'] == 'sequential' for row in rows):
    raise Mistake(f'{run}: no exact recurrence in evaluation.json; train with eval.sequential')
  settings = config['config']
  sample = (run / 'samples' / f'step_{finished["step"]}.txt').read_text('utf-8')
  return {
    'step': finished['step'],
    'training_seconds': finished['training_seconds'],
    'parameters': accounting.parameters(settings['model']).stored,
    'protocol': protocol,
    'results': rows,
    'sample': sample[:SAMPLE_CHARACTERS],
    'origin': pages.rounded(config['origin']),
    'config': pages.rounded(settings),
  }


def reached(record: dict) -> str:
  """Returns the README's table: scores in the trained form and in the form of use."""
  model, data = record['config']['model'], record['config']['data']
  depth = model['depth']
  forms = {
    ('sequential', None): 'exact recurrence, with which it writes',
    ('parallel', depth): f'K = {depth} parallel passes, the most it was trained with',
  }
  rows = []
  for row in record['results']:
    name = forms.get((row['form'], row['depth']))
    if name:
      rows.append((name, f'{row["perplexity"]:.3f}', f'{row["bits_per_byte"]:.3f}'))
  batch = f'{data["batch_size"]} x {data["sequence_length"]} tokens'
  drawn = record['config']['sample']
  sample = '\n'.join(line.rstrip() for line in record['sample'].strip().splitlines())
  written = ''.join(c if c.isprintable() or c == '\n' else '\ufffd' for c in sample)
  return pages.paragraphs(
    pages.table(('on held-out text', 'perplexity per token', 'bits per byte'), rows),
    f'{record["parameters"]:,} parameters, {record["step"]:,} steps of {batch} '
    f'({data["corpus"]}, tokenizer: {data["tokenizer"]}), {record["training_seconds"]:.0f} s of '
    f'training without compiling and evaluating. {target_words(record)} {made_with(record)}',
    f'What it wrote at the end after the prompt "{drawn["prompt"]}" (temperature '
    f'{drawn["temperature"]:g}, top-k {drawn["top_k"]}, top-p {drawn["top_p"]:g}), its first '
    f'{SAMPLE_CHARACTERS} characters:',
    f'```text\n{written}\n```',
  )


def by_depth(record: dict) -> str:
  """Returns the table of docs/crt.md: every K beside the exact recurrence."""
  exact = exact_row(record)['perplexity']
  head = ('form', 'perplexity per token', 'bits per byte', 'perplexity less that of the exact form')
  rows = []
  for row in record['results']:
    name = 'exact recurrence' if row['form'] == 'sequential' else f'K = {row["depth"]}'
    note = '' if row['is_inference_metric'] else ' (no recurrence)'
    gap = '' if row['form'] == 'sequential' else f'{row["perplexity"] - exact:+.2g}'
    rows.append((name + note, f'{row["perplexity"]:.4f}', f'{row["bits_per_byte"]:.4f}', gap))
  return pages.paragraphs(pages.table(head, rows), f'{target_words(record)} {made_with(record)}')


def target_words(record: dict) -> str:
  """Returns in words how much text was scored."""
  scored = f'{record["results"][0]["targets"]:,} tokens'
  if record['protocol'] == 'whole':
    return f'Scored: the whole validation set, {scored}.'
  return f'Scored: sampled validation windows, {scored}.'


def made_with(record: dict) -> str:
  """Returns a line: one seed, device, versions, date."""
  from crt_jax.evaluation import figures

  return f'One run, seed {record["config"]["seed"]}; {figures.caption(record["origin"])}.'


def exact_row(record: dict) -> dict:
  return next(row for row in record['results'] if row['form'] == 'sequential')


def measured_gap(passes: int, positions: int) -> np.ndarray:
  """Returns the largest |logits - exact logits| by pass and position, [K, T].

  The model is a CRT that does not contract.
  """
  import jax

  import crt_jax

  width = 8
  fields = dict(name='crt', vocab_size=11, width=width, heads=2, layers=2, dtype='float64')
  generator = np.random.default_rng(0)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    uniform = generator.uniform(-1, 1, leaf.shape) * width**-0.5
    if path[0].key == 'embedding':
      return generator.standard_normal(leaf.shape)
    return {'weight': 4 * uniform, 'scale': 1 + uniform}.get(path[-1].key, uniform)

  with jax.enable_x64(True):
    model = crt_jax.build(fields | dict(rotary='integer_reversed'))
    shapes = jax.eval_shape(model.init, random_key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    tokens = generator.integers(0, fields['vocab_size'], (4, positions))
    exact = model.sequential(params, tokens)
    apply = jax.jit(model.apply, static_argnames='depth')
    logits = [apply(params, tokens, depth=k + 1).logits_BxTxV for k in range(passes)]
    return np.stack([np.abs(x - exact).max(axis=(0, 2)) for x in logits])
