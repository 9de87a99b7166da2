"""The parts of docs/latency.md on decoding."""

import functools
import pathlib

from experiments import pages

read = functools.partial(pages.read, 'latency.json')
HEAD = (
  'model', 'batch', 'context', 'dtype', 'tokens per call', 'ms per token', 'p95', 'tokens/s',
  'first token, ms', '% of streamed floor', '% drawing', 'faster than its transformer',
  'than eager PyTorch', 'than `transformers`',
)  # fmt: skip


def texts(result: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the table, the machine and the figures."""
  from crt_jax.evaluation.figures import caption
  from experiments.latency import figures

  figures.latency(result, drawn / 'latency.png')
  figures.advantage(result, drawn / 'advantage.png')
  machine = result['machine']
  text = pages.paragraphs(
    f'Measured: {caption(result)}, commit {result["commit"][:7]}. The machine reads '
    f'{machine["bandwidth"] / 1e9:.1f} GB/s, starts a kernel in {1e6 * machine["launch"]:.2f} us '
    f'and answers a call in {1e6 * machine["round_trip"]:.1f} us.',
    pages.table(HEAD, map(cells, result['rows'])),
    '![Milliseconds per token.](figures/latency.png)',
    '![Advantage against the cost of a launch.](figures/advantage.png)',
  )
  return {'docs/latency.md': text}


def cells(row: dict) -> tuple:
  """Returns a row of the table."""
  torch, transformers = (row['peers'].get(n, {}).get('speedup') for n in ('torch', 'transformers'))
  match = row.get('match', {}).get('speedup')
  return (
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
    *(f'{ratio:.2f}' if ratio else '' for ratio in (match, torch, transformers)),
  )
