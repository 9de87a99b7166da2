"""The part of docs/latency.md on reading prompts."""

import functools
import pathlib

from experiments import pages

read = functools.partial(pages.read, 'prefill.json')
HEAD = (
  'tokens', 'way', 'K', 'ms', 'times as fast as exact', 'largest error of a logit', 'KL, nats',
  'same likeliest token',
)  # fmt: skip


def texts(result: dict, name: str, drawn: pathlib.Path) -> dict[str, str]:
  """Returns the table of all lengths and ways, and the figure."""
  from crt_jax.evaluation.figures import caption
  from experiments.prefill import figure

  figure.prefill(result, drawn / 'prefill.png')
  model = result['model']
  exact = {r['tokens']: r['seconds'] for r in result['rows'] if r['method'] == 'sequential'}
  text = pages.paragraphs(
    f'A CRT of D={model["layers"]}, C={model["width"]}, trained at {result["trained_length"]:,} '
    f'positions with K from {model["depth_min"]} to {model["depth"]}; {result["prompts"]} prompts '
    f'of validation text at a time. {caption(result)}, commit {result["commit"][:7]}.',
    pages.table(HEAD, (cells(row, exact[row['tokens']]) for row in result['rows'])),
    '![Time and error of reading a prompt.](figures/prefill.png)',
  )
  return {'docs/latency.md': text}


def cells(row: dict, exact: float) -> tuple:
  """Returns a row of the table; `exact` has the seconds of the exact way."""
  way = 'exact, one by one' if row['method'] == 'sequential' else row['method']
  return (
    f'{row["tokens"]:,}',
    way + (f', c={row["chunk"]}' if row['method'] == 'chunked' else ''),
    row['passes'] or '',
    f'{1e3 * row["seconds"]:.1f}',
    f'{exact / row["seconds"]:.2f}',
    f'{row["max_logit_error"]:.2g}',
    f'{row["kl"]:.2g}',
    f'{row["same_token"]:.0%}',
  )
