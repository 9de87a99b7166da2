"""The figures: time per token beside its floors, and the effect of launches."""

import pathlib

import numpy as np

from crt_jax.evaluation.figures import COLORS, GREY, page_figure
from experiments.latency.floors import ITEMSIZE, datasheet_bandwidth
from experiments.latency.page import PEERS

ONE_PROGRAM, EAGER, PAPER = 'crt_jax, one program', 'eager PyTorch', "the paper's, A100, eager"
MARKERS = {ONE_PROGRAM: 'o', EAGER: 's', PAPER: '^'}


def latency(result: dict, path: str | pathlib.Path) -> None:
  """Draws milliseconds per token of every model at the first point, by dispatch and peer.

  Args:
    result: what latency.json holds.
  """
  rows = [row for row in result['rows'] if _is_base(row, result['config'])]
  names = list(dict.fromkeys(row['model'] for row in rows))
  series = {}
  for row in rows:
    calls = row['dispatch']
    way = f'crt_jax, tokens per call: {calls}' if calls else 'crt_jax, Python loop'
    series.setdefault(way, {})[row['model']] = 1e3 * row['seconds']
    for peer, values in row['peers'].items():
      series.setdefault(PEERS[peer].replace('`', ''), {})[row['model']] = 1e3 * values['seconds']
  words = f'batch {rows[0]["batch"]}, context {rows[0]["context"]}, {rows[0]["dtype"]}'
  with page_figure(path, 'Decoding, one token', result, made_from=words) as axes:
    width = 0.8 / len(series)
    for index, (way, values) in enumerate(series.items()):
      x = [names.index(name) + (index - (len(series) - 1) / 2) * width for name in values]
      axes.bar(x, values.values(), width, label=way, color=COLORS[index % len(COLORS)])
    for x, name in enumerate(names):
      floor = min(1e3 * row['floor']['streamed'] for row in rows if row['model'] == name)
      axes.hlines(floor, x - 0.45, x + 0.45, color='black', linewidth=1.5)
    axes.plot([], [], color='black', label='floor: its bytes at the best bandwidth measured')
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_ylabel('milliseconds per token')
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc='upper left', ncols=2)


def advantage(result: dict, path: str | pathlib.Path) -> bool:
  """Draws each model's speed-up over its transformer against the price of a launch.

  The price is given in weights: how many of them the memory could deliver in the time of one
  launch. In this unit the ratio (weights_T + launches_T * price) / (the same of the model) depends
  on neither bandwidth nor dtype, so all machines share one figure. Solid curves have the launches
  of the compiled programs, dashed ones those of eager PyTorch. A point lies at the measured price
  of a launch, the paper's at the one that explains its transformer's time; its distance from its
  curve says what weights and launches do not explain.

  Returns: whether there was a pair to draw.
  """
  pairs = _pairs(result)
  if not pairs:
    return False
  with page_figure(path, 'When few wide layers are faster', result) as axes:
    prices = np.logspace(3.5, 8.5, 200)
    for colour, (model, other) in zip(COLORS, pairs, strict=False):
      label = f'{model["model"]} : {other["model"]}'
      axes.plot(prices, predicted(model, other, prices), color=colour, label=label)
      if eager := _as_peer(model, other, 'torch'):
        axes.plot(prices, predicted(eager[0], eager[1], prices), '--', color=colour, linewidth=1)
      for kind, price, ratio in _measured(model, other, result):
        axes.plot(max(price, prices[0]), ratio, MARKERS[kind], color=colour, markersize=7)
    axes.plot([], [], '-', color=GREY, label='weights + launches of one program')
    axes.plot([], [], '--', color=GREY, linewidth=1, label='weights + launches of eager PyTorch')
    for kind, marker in MARKERS.items():
      axes.plot([], [], marker, color=GREY, label=f'measured: {kind}')
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set_xscale('log')
    axes.set_xlabel('weights that the memory delivers in the time of one launch (log scale)')
    axes.set_ylabel('times faster than its transformer')
    axes.legend(frameon=False, fontsize=8, loc='upper left')
  return True


def predicted(model: dict, other: dict, price: float | np.ndarray) -> float | np.ndarray:
  """Returns the ratio of two rows that weights and launches predict at a price per launch."""
  return weights_at(other, price) / weights_at(model, price)


def weights_at(row: dict, price: float | np.ndarray) -> float | np.ndarray:
  """Returns the cost of a token in weights: those it reads, with caches, and its launches."""
  return weights(row) + row['launches'] * price


def weights(row: dict) -> float:
  """Returns the number of values that a token reads."""
  return (row['traffic']['weights'] + row['traffic']['cache']) / ITEMSIZE[row['dtype']]


def explaining_price(row: dict, speed: float) -> float:
  """Returns the launch price at which weights and launches add up to the row's time.

  Args:
    speed: weights per second that the memory of the machine delivers.
  """
  return max(row['seconds'] * speed - weights(row), 0.0) / row['launches']


def _as_peer(model: dict, other: dict, peer: str) -> list[dict]:
  """Returns both rows with the time and launches of a peer; [] if the peer lacks one of them."""
  pair = [row['peers'].get(peer, {}) for row in (model, other)]
  if not all(values.get('launches') for values in pair):
    return []
  return [row | values for row, values in zip((model, other), pair, strict=True)]


def _measured(model: dict, other: dict, result: dict):
  """Yields kind, price and ratio of every measured pair of these two."""
  machine = result['machine']
  speed = machine['bandwidth'] / ITEMSIZE[model['dtype']]
  yield ONE_PROGRAM, machine['launch'] * speed, _speed_up(model, other)
  eager = _as_peer(model, other, 'torch')
  if not eager:
    return
  if launch := eager[0].get('launch'):
    yield EAGER, launch * speed, _speed_up(*eager)
  paper = result['paper']
  if model['model'] in paper and other['model'] in paper:
    there = [row | dict(seconds=1e-3 * paper[row['model']]) for row in eager]
    speed = datasheet_bandwidth('a100-sxm4-80gb') / ITEMSIZE['bfloat16']
    yield PAPER, explaining_price(there[1], speed), _speed_up(*there)


def _speed_up(model: dict, other: dict) -> float:
  return other['seconds'] / model['seconds']


def _pairs(result: dict) -> list[tuple[dict, dict]]:
  """Returns models and their transformers at the first point, as one compiled program."""
  rows = {}
  for row in result['rows']:
    if _is_base(row, result['config']) and row['launches'] and row['dispatch']:
      rows.setdefault(row['model'], row)
  matches = {row['model']: row.get('match', {}).get('model') for row in rows.values()}
  return [(rows[name], rows[match]) for name, match in matches.items() if match in rows]


def _is_base(row: dict, config: dict) -> bool:
  """Returns whether a row differs from the first value of every axis only in dispatch."""
  return all(
    row[name] == config[axis][0]
    for name, axis in (('batch', 'batches'), ('context', 'contexts'), ('dtype', 'dtypes'))
  )
