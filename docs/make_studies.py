"""Publishes a study in docs/cart.md: its table, its figure and its numbers as JSON.

  python -m experiments.study --config=configs/studies/gate.py --workdir=runs/gate
  python -m docs.make_studies --workdir=runs/gate

Which study it is, the variants tell. An unfinished one is published with what there is, and says
so. docs/results/ keeps the JSON, without the rows and fields that nothing shows, and the figure is
drawn from that JSON. What docs/results/ holds already, that of experiments.state_growth too, is
drawn and written anew; --workdir=docs/results does that alone.
"""

import json
import pathlib

import numpy as np

from docs.make_figures import PATHS
from docs.publish import ROOT, filled
from experiments import cli

_WORKDIR = cli.define_workdir('Directory of a study, only read; or docs/results')

PAGE = ROOT / 'docs' / 'cart.md'
RESULTS = ROOT / 'docs' / 'results'
ROWS = 25  # of a history, at most
KEPT = ('step', 'decay_factor', 'loss', 'gate_max', 'gate_mean', 'gate_min', 'blend')
DIGITS = 6


def main(argv):
  del argv
  from crt_jax import json_text
  from crt_jax.evaluation import study_figures

  RESULTS.mkdir(exist_ok=True)
  folder = pathlib.Path(_WORKDIR.value)
  if folder.resolve() != RESULTS:
    name, record = read_study(folder)
    (RESULTS / f'{name}.json').write_text(json_text.dumps(record) + '\n', 'utf-8')
  for file in sorted(RESULTS.glob('*.json')):
    record = json.loads(file.read_text('utf-8'))
    if record.get('study') not in TABLES:
      continue
    text = filled(PAGE, section(file.stem, record), file.stem)
    study_figures.draw(record, file.with_suffix('.png'))
    PAGE.write_text(text, 'utf-8')
    print(f'docs/cart.md shows docs/results/{file.name}')


def read_study(folder: pathlib.Path) -> tuple[str, dict]:
  """The name of a study, as of its config file, and its record without what nothing shows.

  Raises:
    Mistake: no variant is done, or they are of no study or of several.
  """
  found = {
    file.stem: json.loads(file.read_text('utf-8')) for file in folder.glob('variants/*.json')
  }
  if not found:
    raise cli.Mistake(f'{folder}/variants: no variant is done; python -m experiments.study ...')
  fitting = {n: c for n, c in studies().items() if found.keys() <= set(c.study.variants)}
  if not fitting:
    raise cli.Mistake(f'{folder}: no study of configs/studies has the variants {sorted(found)}')
  name, config = next(iter(fitting.items()))
  variants = {n: thinned(found[n]) for n in config.study.variants if n in found}
  return name, {
    'study': config.study.figure,
    'command': f'python -m experiments.study --config=configs/studies/{name}.py',
    'variants_of_study': len(config.study.variants),
    'origin': without_command(next(iter(found.values()))['origin']),
    'variants': variants,
  }


def studies() -> dict:
  """Name -> config of every study."""
  from experiments import config_files

  files = sorted((ROOT / 'configs' / 'studies').glob('*.py'))
  return {file.stem: config_files.load(str(file)) for file in files}


def thinned(result: dict) -> dict:
  """A variant with few rows, few digits, and nobody's paths."""
  config, rows = result['config'], result['history']
  data = {k: v for k, v in config['data'].items() if k not in PATHS}
  measured = [row for row in rows if 'gate_mean' in row] or rows
  every = -(-len(measured) // ROWS)
  history = measured[::-1][::every][::-1]  # the last one stays
  return rounded(
    result
    | {
      'config': {k: config[k] for k in ('model', 'optimizer', 'train', 'eval')} | {'data': data},
      'origin': without_command(result['origin']),
      'history': [{k: v for k, v in row.items() if k in KEPT} for row in history],
    }
  )


def without_command(origin: dict) -> dict:
  return {k: v for k, v in origin.items() if k != 'command'}


def rounded(value):
  """The same tree with floats of few digits."""
  if isinstance(value, dict):
    return {k: rounded(v) for k, v in value.items()}
  if isinstance(value, list):
    return [rounded(v) for v in value]
  return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def section(name: str, record: dict) -> str:
  """Table, figure and origin, as the page shows them."""
  from crt_jax.evaluation import figures

  done, lines = len(record['variants']), TABLES[record['study']](record)
  wanted = record.get('variants_of_study', done)
  if done < wanted:
    lines += ['', f'Unfinished: {done} of {wanted} variants.']
  commit = record['origin']['commit'][:7]
  return '\n'.join(
    [
      *lines,
      '',
      f'![{ALT[record["study"]]}](results/{name}.png)',
      '',
      f'{figures.caption(record["origin"])}, commit {commit}; numbers: '
      f'[{name}.json](results/{name}.json).',
    ]
  )


def gate_table(record: dict) -> list[str]:
  """Where the gate ended, where decay alone would have put it, Jacobian and perplexity."""
  from crt_jax.evaluation.study_figures import decayed, words

  lines = [
    '| variant | gate at the end, mean over channels | by weight decay alone | largest channel | '
    'spectral radius of the last loop | norm | validation perplexity |',
    '|---|---|---|---|---|---|---|',
  ]
  for name, variant in record['variants'].items():
    config, row = variant['config'], variant['history'][-1]
    cells = ['', '', '']
    if 'gate_mean' in row:
      cells[0], cells[2] = spread(row['gate_mean'], 4), spread(row['gate_max'], 4)
      if config['optimizer']['decay_mask'] == 'all' and not config['optimizer']['frozen']:
        cells[1] = f'{decayed(config["model"]["gate_init"], [row])[0]:.4f}'
    jacobian = variant['jacobian']
    cells += [spread(jacobian['jacobian_radius'], 3), spread(jacobian['jacobian_norm'], 2)]
    cells += [spread(variant['validation'][0]['perplexity'], 3)]
    lines.append(f'| {words(name)} | {" | ".join(cells)} |')
  return lines + ['', footnote(record)]


def depths_table(record: dict) -> list[str]:
  """Perplexity by R at evaluation, one column a variant."""
  from crt_jax.evaluation.study_figures import trained_with

  variants = record['variants'].values()
  columns = [{r['depth']: r['perplexity'] for r in v['validation']} for v in variants]
  titles = [trained_with(v['config']['model']) for v in variants]
  lines = [
    f'| R at evaluation | {" | ".join(titles)} |',
    '|---' * (len(columns) + 1) + '|',
  ]
  for depth in columns[0]:
    cells = [spread(column[depth], 3) for column in columns]
    lines.append(f'| {depth} | {" | ".join(cells)} |')
  return lines + ['', f'Validation perplexity per token. {footnote(record)}']


def grid_table(record: dict) -> list[str]:
  """Cost and perplexity of every size."""
  lines = [
    '| P | R | parameters, M | training MFLOPs per token | validation perplexity |',
    '|---|---|---|---|---|',
  ]
  for variant in record['variants'].values():
    model, cost = variant['config']['model'], variant['cost']
    flops = cost['forward_backward_flops_per_token'] / 1e6
    lines.append(
      f'| {model["prelude_layers"]} | {model["loops"]} | {cost["parameters"] / 1e6:.2f} | '
      f'{flops:.1f} | {spread(variant["validation"][0]["perplexity"], 2)} |'
    )
  return lines + ['', footnote(record)]


def growth_table(record: dict) -> list[str]:
  """RMS of the state after some of the loops."""
  loops = [r for r in (0, 1, 2, 3, 4, 5, 6, 10, 16) if r <= record['loops']]
  lines = [f'| RMS of the state after R loops | {" | ".join(map(str, loops))} |']
  lines.append('|---' * (len(loops) + 1) + '|')
  for name, seeds in record['variants'].items():
    mean = np.mean(seeds, axis=0)
    lines.append(f'| {name} | {" | ".join(short(mean[r]) for r in loops)} |')
  return lines


def footnote(record: dict) -> str:
  """How long, on what, how many seeds."""
  first = next(iter(record['variants'].values()))
  data, seeds = first['config']['data'], first['seeds']
  return (
    f'Mean (lowest to highest) of the seeds {", ".join(map(str, seeds))}; {data["corpus"]}, '
    f'{first["cost"]["tokens"]:,} training tokens.'
  )


def short(value: float) -> str:
  """Three digits, or all before the point."""
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def spread(values: list[float], digits: int) -> str:
  """0.8939 (0.8938 to 0.8940), or one number where all are alike."""
  low, high = f'{min(values):.{digits}f}', f'{max(values):.{digits}f}'
  mean = f'{sum(values) / len(values):.{digits}f}'
  return mean if low == high else f'{mean} ({low} to {high})'


TABLES = {
  'gate': gate_table,
  'depths': depths_table,
  'grid': grid_table,
  'state_growth': growth_table,
}
ALT = {
  'gate': 'The gate over training, perplexity and spectral radius by variant.',
  'depths': 'Perplexity against the number of loops at evaluation.',
  'grid': 'Perplexity against training FLOPs for every prelude depth and number of loops.',
  'state_growth': 'Root mean square of the state after each loop.',
}


if __name__ == '__main__':
  cli.run(main)
