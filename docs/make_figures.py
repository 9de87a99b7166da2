"""Draws the figures of docs/, and writes into the pages what the quickstart reached.

  python -m experiments.main --config=configs/quickstart.py --workdir=runs/quickstart
  python -m docs.make_figures --workdir=runs/quickstart

Every number comes from the records of that run. What is shown of them is kept in
docs/figures/quickstart.json; text between <!-- quickstart --> and <!-- /quickstart --> is replaced.
"""

import json
import pathlib

from crt_jax.keys import random_key
from docs.publish import FIGURES, ROOT, filled
from experiments import cli

_WORKDIR = cli.define_workdir('Directory of a finished run of configs/quickstart.py; only read')

SAMPLE_CHARACTERS = 400
PATHS = ('cache_dir', 'tfds_dir', 'files')  # of config.data: they say nothing to another reader


def main(argv):
  del argv
  from crt_jax import json_text
  from crt_jax.evaluation import figures
  from docs import diagrams

  run = pathlib.Path(_WORKDIR.value)
  record = read_record(run)
  pages = {
    ROOT / 'README.md': reached(record),
    ROOT / 'docs' / 'crt.md': by_depth(record),
  }
  pages = {page: filled(page, text) for page, text in pages.items()}
  FIGURES.mkdir(exist_ok=True)
  diagrams.crt_recurrence(FIGURES / 'crt_recurrence.png')
  diagrams.crt_passes(FIGURES / 'crt_passes.png', measured_gap(passes=6, positions=5))
  diagrams.cart(FIGURES / 'cart.png')
  convergence = FIGURES / 'quickstart_convergence.png'
  figures.perplexity_against_depth({'whole': record['results']}, convergence, record['origin'])
  (FIGURES / 'quickstart.json').write_text(json_text.dumps(record, indent=1) + '\n', 'utf-8')
  for page, text in pages.items():
    page.write_text(text, 'utf-8')
  print(f'{FIGURES.relative_to(ROOT)}/, README.md and docs/crt.md now show {run}')


def read_record(run: pathlib.Path) -> dict:
  """What the documentation says about a run, as plain JSON without anybody's paths.

  Raises:
    Mistake: the run is not finished, or was evaluated without the exact recurrence.
  """
  from crt_jax import accounting

  if not (run / 'finished.json').exists():
    raise cli.Mistake(
      f'{run}: no finished run here; python -m experiments.main --workdir={run} ...'
    )
  config = json.loads((run / 'config.json').read_text('utf-8'))
  evaluation = json.loads((run / 'evaluation.json').read_text('utf-8'))
  finished = json.loads((run / 'finished.json').read_text('utf-8'))
  protocol = 'whole' if 'whole' in evaluation['results'] else 'sampled'
  rows = evaluation['results'][protocol]
  if not any(row['form'] == 'sequential' for row in rows):
    raise cli.Mistake(f'{run}: no exact recurrence in evaluation.json; train with eval.sequential')
  origin = {name: value for name, value in config['origin'].items() if name != 'command'}
  settings = config['config']
  settings['data'] = {k: v for k, v in settings['data'].items() if k not in PATHS}
  sample = (run / 'samples' / f'step_{finished["step"]}.txt').read_text('utf-8')
  return {
    'step': finished['step'],
    'training_seconds': finished['training_seconds'],
    'parameters': accounting.parameters(settings['model']).stored,
    'protocol': protocol,
    'results': rows,
    'sample': sample[:SAMPLE_CHARACTERS],
    'origin': origin,
    'config': settings,
  }


def reached(record: dict) -> str:
  """The README's table: how good, in the form that is trained and the form that is used."""
  model, data = record['config']['model'], record['config']['data']
  depth = model['depth']
  forms = {
    ('sequential', None): 'exact recurrence, with which it writes',
    ('parallel', depth): f'K = {depth} parallel passes, the most it was trained with',
  }
  lines = ['| on held-out text | perplexity per token | bits per byte |', '|---|---|---|']
  for row in record['results']:
    name = forms.get((row['form'], row['depth']))
    if name:
      lines.append(f'| {name} | {row["perplexity"]:.3f} | {row["bits_per_byte"]:.3f} |')
  batch = f'{data["batch_size"]} x {data["sequence_length"]} tokens'
  drawn = record['config']['sample']
  sample = '\n'.join(line.rstrip() for line in record['sample'].strip().splitlines())
  return '\n'.join(
    [
      *lines,
      '',
      f'{record["parameters"]:,} parameters, {record["step"]:,} steps of {batch} '
      f'({data["corpus"]}, tokenizer: {data["tokenizer"]}), {record["training_seconds"]:.0f} s of '
      f'training without compiling and evaluating. {target_words(record)} {made_with(record)}',
      '',
      f'What it wrote at the end behind the prompt "{drawn["prompt"]}" (temperature '
      f'{drawn["temperature"]:g}, top-k {drawn["top_k"]}, top-p {drawn["top_p"]:g}), its first '
      f'{SAMPLE_CHARACTERS} characters:',
      '',
      '```text',
      ''.join(c if c.isprintable() or c == '\n' else '\ufffd' for c in sample),
      '```',
    ]
  )


def by_depth(record: dict) -> str:
  """The table of docs/crt.md: every K beside the exact recurrence."""
  exact = exact_row(record)['perplexity']
  lines = [
    '| form | perplexity per token | bits per byte | perplexity less that of the exact form |',
    '|---|---|---|---|',
  ]
  for row in record['results']:
    name = 'exact recurrence' if row['form'] == 'sequential' else f'K = {row["depth"]}'
    note = '' if row['is_inference_metric'] else ' (no recurrence)'
    gap = '' if row['form'] == 'sequential' else f'{row["perplexity"] - exact:+.2g}'
    lines.append(f'| {name}{note} | {row["perplexity"]:.4f} | {row["bits_per_byte"]:.4f} | {gap} |')
  return '\n'.join([*lines, '', f'{target_words(record)} {made_with(record)}'])


def target_words(record: dict) -> str:
  """How much text the numbers rest on."""
  scored = f'{record["results"][0]["targets"]:,} tokens'
  if record['protocol'] == 'whole':
    return f'Scored: the whole validation set, {scored}.'
  return f'Scored: sampled validation windows, {scored}.'


def made_with(record: dict) -> str:
  """One seed, on what, with which versions, when."""
  from crt_jax.evaluation import figures

  return f'One run, seed {record["config"]["seed"]}; {figures.caption(record["origin"])}.'


def exact_row(record: dict) -> dict:
  return next(row for row in record['results'] if row['form'] == 'sequential')


def measured_gap(passes: int, positions: int):
  """Largest |logits - exact logits| by pass and position, [K, T], of a CRT that does not contract.

  In float64, with matrices four times as large as PyTorch would draw them, so that what is exact
  shows as rounding and the rest does not (crt.md, 3.1).
  """
  import jax
  import numpy as np

  import crt_jax

  width = 8
  fields = dict(name='crt', vocab_size=11, width=width, heads=2, layers=2, dtype='float64')
  generator = np.random.default_rng(0)

  def draw(path, leaf):
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


if __name__ == '__main__':
  cli.run(main)
