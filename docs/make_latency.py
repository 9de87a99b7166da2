"""Writes what a latency run measured into docs/latency.md, and its figures beside it.

  python -m experiments.latency --config=configs/latency_cpu.py
  python -m docs.make_latency --workdir=runs/latency_cpu

Every number comes from latency.json of that run, of which a copy is kept in benchmarks/results/.
"""

import json
import pathlib
import shutil

from docs.pages import FIGURES, ROOT, filled
from experiments import cli

_WORKDIR = cli.define_workdir('Directory of a finished latency run; only read')
PAGE = ROOT / 'docs' / 'latency.md'


def main(argv):
  del argv
  run = pathlib.Path(_WORKDIR.value)
  if not (run / 'latency.json').exists():
    raise cli.Mistake(f'{run}: no latency.json here; python -m experiments.latency writes one')
  result = json.loads((run / 'latency.json').read_text())
  text = filled(PAGE, page(result), 'latency')
  for name in ('latency', 'advantage'):
    if (run / f'{name}.png').exists():
      shutil.copy(run / f'{name}.png', FIGURES / f'{name}.png')
  shutil.copy(run / 'latency.json', ROOT / 'benchmarks' / 'results' / 'latency.json')
  PAGE.write_text(text)
  print(f'docs/latency.md, docs/figures/ and benchmarks/results/latency.json now show {run}')


def page(result: dict) -> str:
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
    'than eager PyTorch |',
    '|---' * 13 + '|',
    *map(table_line, result['rows']),
    '',
    '![Milliseconds per token.](figures/latency.png)',
    '',
    '![Advantage against the cost of a launch.](figures/advantage.png)',
  ]
  return '\n'.join(lines)


def table_line(row: dict) -> str:
  speedup = row['peers'].get('torch', {}).get('speedup')
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
    f'{speedup:.2f}' if speedup else '',
  )
  return '| ' + ' | '.join(map(str, cells)) + ' |'


if __name__ == '__main__':
  cli.run(main)
