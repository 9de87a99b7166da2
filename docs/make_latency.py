"""Writes what was measured of decoding into docs/latency.md, and its figures beside it.

  python -m docs.make_latency --latency=runs/latency_cpu --prefill=runs/prefill

Each flag is the directory that experiments.latency or experiments.prefill wrote, and may be left
out. Every number comes from the JSON there, of which a copy is kept in benchmarks/results/.
"""

import json
import pathlib
import shutil

from absl import flags

from docs.pages import FIGURES, ROOT, filled
from experiments import cli

PAGE = ROOT / 'docs' / 'latency.md'
DRAWN = {'latency': ('latency.png', 'advantage.png'), 'prefill': ('prefill.png',)}

for _name in DRAWN:
  flags.DEFINE_string(_name, '', f'Directory of a finished run, with {_name}.json; only read.')


def main(argv):
  del argv
  given = {name: pathlib.Path(flags.FLAGS[name].value) for name in DRAWN if flags.FLAGS[name].value}
  for name, run in given.items():
    if not (run / f'{name}.json').exists():
      raise cli.Mistake(f'--{name}={run}: no {name}.json here; experiments.{name} writes one')
  for name, run in given.items():
    result = json.loads((run / f'{name}.json').read_text('utf-8'))
    PAGE.write_text(filled(PAGE, SECTIONS[name](result), name), 'utf-8')
    for figure in DRAWN[name]:
      if (run / figure).exists():
        shutil.copy(run / figure, FIGURES / figure)
    shutil.copy(run / f'{name}.json', ROOT / 'benchmarks' / 'results' / f'{name}.json')
    print(f'docs/latency.md, docs/figures/ and benchmarks/results/{name}.json now show {run}')


def latency(result: dict) -> str:
  """The table, the machine, and where the numbers come from."""
  from crt_jax.evaluation import figures

  machine = result['machine']
  lines = [
    f'Measured: {figures.caption(result)}, commit {result["commit"][:7]}. The machine reads '
    f'{machine["bandwidth"] / 1e9:.1f} GB/s, starts a kernel in {1e6 * machine["launch"]:.2f} us '
    f'and answers a call in {1e6 * machine["round_trip"]:.1f} us.',
    '',
    '| model | batch | context | dtype | tokens per call | ms per token | p95 | tokens/s | '
    'first token, ms | % of streamed floor | % drawing | faster than its transformer | '
    'than eager PyTorch | than `transformers` |',
    '|---' * 14 + '|',
    *map(table_line, result['rows']),
    '',
    '![Milliseconds per token.](figures/latency.png)',
    '',
    '![Advantage against the cost of a launch.](figures/advantage.png)',
  ]
  return '\n'.join(lines)


def table_line(row: dict) -> str:
  torch, transformers = (row['peers'].get(n, {}).get('speedup') for n in ('torch', 'transformers'))
  match = row.get('match', {}).get('speedup')
  cells = (
    row['model'],
    row['batch'],
    row['context'],
    row['dtype'],
    row['dispatch'] or 'Python loop',
    f'{1e3 * row["seconds"]:.2f}',
    f'{1e3 * row["p95"]:.2f}',
    f'{row["tokens_per_second"]:.1f}',
    f'{1e3 * row["first_token"]:.0f}',
    f'{row["share"]["streamed"]:.0%}',
    f'{row["draw"] / row["seconds"]:.1%}',
    f'{match:.2f}' if match else '',
    f'{torch:.2f}' if torch else '',
    f'{transformers:.2f}' if transformers else '',
  )
  return '| ' + ' | '.join(map(str, cells)) + ' |'


def prefill(result: dict) -> str:
  """The table of all lengths and ways, and the figure."""
  from crt_jax.evaluation import figures

  model = result['model']
  lines = [
    f'A CRT of D={model["layers"]}, C={model["width"]}, trained at {result["trained_length"]:,} '
    f'positions with K from {model["depth_min"]} to {model["depth"]}; {result["prompts"]} prompts '
    f'of validation text at a time. {figures.caption(result)}, commit {result["commit"][:7]}.',
    '',
    '| tokens | way | K | ms | times as fast as exact | largest error of a logit | KL, nats | '
    'same likeliest token |',
    '|---' * 8 + '|',
  ]
  exact = {r['tokens']: r['seconds'] for r in result['rows'] if r['method'] == 'sequential'}
  for row in result['rows']:
    way = 'exact, one by one' if row['method'] == 'sequential' else row['method']
    cells = (
      f'{row["tokens"]:,}',
      way + (f', c={row["chunk"]}' if row['method'] == 'chunked' else ''),
      row['passes'] or '',
      f'{1e3 * row["seconds"]:.1f}',
      f'{exact[row["tokens"]] / row["seconds"]:.2f}',
      f'{row["max_logit_error"]:.2g}',
      f'{row["kl"]:.2g}',
      f'{row["same_token"]:.0%}',
    )
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
  return '\n'.join([*lines, '', '![Time and error of reading a prompt.](figures/prefill.png)'])


SECTIONS = {'latency': latency, 'prefill': prefill}


if __name__ == '__main__':
  cli.run(main)
