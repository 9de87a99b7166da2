"""The part of docs/latency.md on reading prompts."""

import functools
import pathlib

from experiments import pages

read = functools.partial(pages.read, 'prefill.json')
HEAD = (
  'tokens', 'way', 'K', 'ms', 'speed, exact = 1', 'largest error of a logit', 'KL, nats',
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
    f'The model is a CRT with D={model["layers"]} and C={model["width"]}, trained on sequences of '
    f'{result["trained_length"]:,} positions with K from {model["depth_min"]} to {model["depth"]}. '
    f'It read {result["prompts"]} prompts of validation text together. Measured on '
    f'{caption(result)}, commit {result["commit"][:7]}.',
    pages.table(HEAD, (cells(row, exact[row['tokens']]) for row in result['rows'])),
    '![Time to read a prompt and error of the next token, by length.](figures/prefill.png)',
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
