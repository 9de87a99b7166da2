"""The part of docs/cart.md on a study of CART: its table, its figure and its origin.

An unfinished study is published with the variants it has, and says so. Parts of its record that
nothing shows, most rows of the history and most fields, are not kept.
"""

import json
import pathlib

from crt_jax.cli.user_errors import Mistake
from crt_jax.rounding import ceil_div
from experiments import pages

ROWS = 25  # of a history, at most
KEPT = ('step', 'decay_factor', 'loss', 'gate_max', 'gate_mean', 'gate_min', 'blend')
DIGITS = 6


def read(folder: pathlib.Path, name: str) -> dict:
  """Returns the record of the study configs/studies/NAME.py without the parts that nothing shows.

  Raises:
    Mistake: no variant is done, or it is a study of other variants.
  """
  from crt_jax.cli import config_files

  found = {
    file.stem: json.loads(file.read_text('utf-8')) for file in folder.glob('variants/*.json')
  }
  if not found:
    raise Mistake(f'{folder}/variants: no variant is done; python -m experiments.study ...')
  file = f'configs/studies/{name}.py'
  study = config_files.load(file).study
  if unknown := sorted(found.keys() - study.variants.keys()):
    raise Mistake(f'--{name}={folder}: {file} has no variant {", ".join(unknown)}')
  return {
    'study': study.figure,
    'command': f'python -m experiments.study --config={file}',
    'variants_of_study': len(study.variants),
    'origin': pages.rounded(next(iter(found.values()))['origin']),
    'variants': {n: thinned(found[n]) for n in study.variants if n in found},
  }


def thinned(result: dict) -> dict:
  """Returns a variant with fewer rows and digits, without private paths."""
  config, rows = result['config'], result['history']
  measured = [row for row in rows if 'gate_mean' in row] or rows
  every = ceil_div(len(measured), ROWS)
  history = measured[::-1][::every][::-1]  # the last one stays
  kept = {
    'config': {k: config[k] for k in ('model', 'optimizer', 'train', 'eval', 'data')},
    'history': [{k: v for k, v in row.items() if k in KEPT} for row in history],
  }
  return pages.rounded(result | kept, DIGITS)


def texts(record: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns table, figure and origin."""
  from experiments.study import figures

  figures.draw(record, drawn / f'{name}.png')
  table, shows = TABLES[record['study']]
  done = len(record['variants'])
  wanted = record.get('variants_of_study', done)
  text = pages.paragraphs(
    table(record),
    *([f'Unfinished: {done} of {wanted} variants.'] if done < wanted else []),
    f'![{shows}](figures/{name}.png)',
    pages.numbers_from(record, name),
  )
  return {'docs/cart.md': text}


def gate_table(record: dict) -> str:
  """Returns the final gate, the gate by decay alone, Jacobian and perplexity of each variant."""
  from experiments.study.figures import decayed, words

  head = ['variant', 'gate at the end, mean over channels', 'by weight decay alone']
  head += ['largest channel', 'spectral radius of the last loop', 'norm', 'validation perplexity']
  rows = []
  for name, variant in record['variants'].items():
    config, row = variant['config'], variant['history'][-1]
    cells = ['', '', '']
    if 'gate_mean' in row:
      cells[0], cells[2] = (pages.spread(row[key], '.4f') for key in ('gate_mean', 'gate_max'))
      if config['optimizer']['decay_mask'] == 'all' and not config['optimizer']['frozen']:
        cells[1] = f'{decayed(config["model"]["gate_init"], [row])[0]:.4f}'
    jacobian = variant['jacobian']
    cells += [pages.spread(jacobian['jacobian_radius'], '.3f')]
    cells += [pages.spread(jacobian['jacobian_norm'], '.2f')]
    cells += [pages.spread(variant['validation'][0]['perplexity'], '.3f')]
    rows.append([words(name), *cells])
  return pages.paragraphs(pages.table(head, rows), footnote(record))


def depths_table(record: dict) -> str:
  """Returns perplexity by R at evaluation, one column a variant."""
  from experiments.study.figures import trained_with

  variants = record['variants'].values()
  columns = [{r['depth']: r['perplexity'] for r in v['validation']} for v in variants]
  head = ['R at evaluation', *(trained_with(v['config']['model']) for v in variants)]
  rows = [
    [depth, *(pages.spread(column[depth], '.3f') for column in columns)] for depth in columns[0]
  ]
  note = f'Validation perplexity per token. {footnote(record)}'
  return pages.paragraphs(pages.table(head, rows), note)


def grid_table(record: dict) -> str:
  """Returns cost and perplexity of every size."""
  head = ('P', 'R', 'parameters, M', 'training MFLOPs per token', 'validation perplexity')
  rows = []
  for variant in record['variants'].values():
    model, cost = variant['config']['model'], variant['cost']
    cells = (f'{cost["parameters"] / 1e6:.2f}',)
    cells += (f'{cost["forward_backward_flops_per_token"] / 1e6:.1f}',)
    cells += (pages.spread(variant['validation'][0]['perplexity'], '.2f'),)
    rows.append((model['prelude_layers'], model['loops'], *cells))
  return pages.paragraphs(pages.table(head, rows), footnote(record))


def footnote(record: dict) -> str:
  """Returns a line: training length, dataset, number of seeds."""
  first = next(iter(record['variants'].values()))
  data, seeds = first['config']['data'], first['seeds']
  return (
    f'Mean (lowest to highest) of the seeds {", ".join(map(str, seeds))}; {data["corpus"]}, '
    f'{first["cost"]["tokens"]:,} training tokens.'
  )


TABLES = {  # and what the figure shows
  'gate': (gate_table, 'The gate over training, perplexity and spectral radius by variant.'),
  'depths': (depths_table, 'Perplexity against the number of loops at evaluation.'),
  'grid': (
    grid_table,
    'Perplexity against training FLOPs for every prelude depth and number of loops.',
  ),
}
