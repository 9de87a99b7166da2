"""The parts of docs/latency.md and README on decoding."""

import functools
import pathlib
from collections.abc import Iterable

from experiments import pages

read = functools.partial(pages.read, 'latency.json')
HEAD = (
  'model', 'batch', 'context', 'dtype', 'tokens per call', 'load', 'ms per token', 'p95',
  'tokens/s', 'first token, ms', 'streamed floor, of the time', 'drawing, of the time',
  'speed, its transformer = 1',
)  # fmt: skip
PEERS = {
  'torch': 'eager PyTorch',
  'torch_compiled': '`torch.compile`',
  'transformers': '`transformers`',
  'transformers_static': '`transformers` with a static cache',
}
SHOWN = {
  'crt_d1_c2048': 'CRT, 1 layer of 2048',
  'transformer_n6': 'transformer, 6 layers of 1088',
  'crt_d5_c1120': 'CRT, 5 layers of 1120',
  'transformer_n12': 'transformer, 12 layers of 768',
  'cart_d1024': 'CART, 6 loops, 1024',
  'dense_12': 'transformer, 12 layers of 1024',
}
SHORT_HEAD = (
  'model', 'ms per token', 'of it, reading must take', 'speed, its transformer = 1',
  'speed, eager PyTorch = 1',
)  # fmt: skip


def texts(result: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the table, the machine and the figures, and a short table; or that of all peers."""
  if name == 'latency_peers':
    return {'docs/latency.md': beside_peers(result)}
  from crt_jax.evaluation.figures import caption
  from experiments.latency import figures

  figures.latency(result, drawn / 'latency.png')
  figures.advantage(result, drawn / 'advantage.png')
  machine = result['machine']
  text = pages.paragraphs(
    f'Measured on {caption(result)}, commit {result["commit"][:7]}. The machine reads memory at '
    f'{machine["bandwidth"] / 1e9:.1f} GB/s, launches a kernel in {1e6 * machine["launch"]:.2f} us '
    f'and returns from a call in {1e6 * machine["round_trip"]:.1f} us.',
    table(result['rows']),
    '![Milliseconds per token of each model, with the floor of its bytes.](figures/latency.png)',
    '![Speed, its transformer = 1, against the cost of a launch.](figures/advantage.png)',
  )
  return {'docs/latency.md': text, 'README.md': short(result)}


def table(rows: list[dict]) -> str:
  """Returns all rows, without the columns that none of them fills."""
  lines = [cells(row, [*PEERS]) for row in rows]
  columns = zip([*HEAD, *compared(PEERS)], *lines, strict=True)
  head, *lines = zip(*(column for column in columns if any(column[1:])), strict=True)
  return pages.table(head, lines)


def compared(peers: Iterable[str]) -> list[str]:
  """Returns the heads of the peers' columns."""
  return [f'speed, {PEERS[name]} = 1' for name in peers]


def beside_peers(result: dict) -> str:
  """Returns each model's speed beside every peer's, and where it was measured."""
  from crt_jax.evaluation.figures import caption

  head = ['model', 'batch', 'context', 'dtype', 'tokens per call', 'load', 'ms per token']
  rows = [cells(row, [*PEERS]) for row in result['rows']]
  return pages.paragraphs(
    f'All peers, in turns with each row: {caption(result)}, commit {result["commit"][:7]}, memory '
    f'read at {result["machine"]["bandwidth"] / 1e9:.1f} GB/s.',
    pages.table(
      [*head, *compared(PEERS)], [(*row[: len(head)], *row[len(HEAD) :]) for row in rows]
    ),
  )


def short(result: dict) -> str:
  """Returns the models of the papers at batch 1, without a context, 16 tokens a call."""
  from crt_jax.evaluation.figures import caption

  asked = dict(batch=1, context=1, dtype='float32', dispatch=16)
  rows = {row['model']: row for row in result['rows'] if asked.items() <= row.items()}
  kept = [(SHOWN[name], *cells(rows[name], ['torch'])) for name in SHOWN if name in rows]
  return pages.paragraphs(
    pages.table(SHORT_HEAD, [(row[0], row[7], row[11], row[13], row[14]) for row in kept]),
    f'Batch 1, float32, random weights; {caption(result)}. On a processor nearly all of the time '
    'goes into reading weights, of which a CRT has as many as its transformer or more. On a GPU it '
    'should gain by its fewer kernels; that was predicted, not measured: '
    '[docs/latency.md](docs/latency.md).',
  )


def cells(row: dict, peers: list[str]) -> tuple:
  """Returns a row of the table."""
  ratios = [row.get('match', {}).get('speedup')]
  ratios += [row['peers'].get(name, {}).get('speedup') for name in peers]
  return (
    row['model'],
    row['batch'],
    row['context'],
    row['dtype'],
    row['dispatch'] or 'Python loop',
    f'{row["load"]:.1f}' if 'load' in row else '',
    f'{1e3 * row["seconds"]:.2f}',
    f'{1e3 * row["p95"]:.2f}',
    f'{row["tokens_per_second"]:.1f}',
    f'{1e3 * row["first_token"]:.0f}',
    f'{row["share"]["streamed"]:.0%}',
    f'{row["draw"] / row["seconds"]:.1%}',
    *(f'{ratio:.2f}' if ratio else '' for ratio in ratios),
  )
