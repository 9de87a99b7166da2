"""Decode speed of a CRT (crt.md, 10.10): no runs, but what docs/results/latency*.json measured."""

import json
import pathlib
from typing import NamedTuple

from experiments import pages
from experiments.claims.budgets import RESULTS
from experiments.claims.claim import CONFIRMED, REFUTED, UNDECIDED, Claim, Measured, Published

# What is compared, and how many times as fast the paper's first model is.
PAIRS = {
  'D=1 : N=6': ('crt_d1_c2048', 'transformer_n6', 2.6),
  'D=5 : N=12': ('crt_d5_c1120', 'transformer_n12', 1.7),
}
EAGER = 'eager PyTorch'
ROW = 'a100, jax 0.10.2'  # of the predictions: the paper's GPU
COMPILED = pathlib.Path(__file__).parents[3] / 'benchmarks' / 'results' / 'aot_gpu.json'


class Ratio(NamedTuple):
  """How many times as fast a CRT decodes one text as the transformer of the same cost per token.

  Attributes:
    way: what starts the kernels of a token.
  """

  pair: str
  way: str
  times: float

  @property
  def missing(self) -> float:
    """What it lacks of the published ratio."""
    return PAIRS[self.pair][2] - self.times


def rule(ratios: list[Ratio]) -> str:
  """Confirmed where each ratio, by every way to start the kernels, is at least the published one
  less 0.2 (as much as it varies from minute to minute on a shared machine); refuted where every
  ratio of compiled programs is lower; else, and where a pair was not measured, undecided. Unlike
  the other rules it was written when a processor had been measured, and before any GPU."""
  if {one.pair for one in ratios} < PAIRS.keys():
    return UNDECIDED
  if all(one.missing <= 0.2 for one in ratios):
    return CONFIRMED
  compiled = [one for one in ratios if one.way != EAGER]
  return REFUTED if all(one.missing > 0.2 for one in compiled) else UNDECIDED


def ratios(result: dict) -> list[Ratio]:
  """Returns the ratios of batch 1 without a context, in the dtype that was measured first."""
  asked = dict(batch=1, context=1, dtype=result['config']['dtypes'][0])
  names = {models[:2]: pair for pair, models in PAIRS.items()}
  found, eager = [], {}
  for row in result['rows']:
    match = row.get('match', {})
    pair = names.get((row['model'], match.get('model')))
    if pair and asked.items() <= row.items():
      tokens = f'{row["dispatch"]} tokens' if row['dispatch'] > 1 else 'each token'
      way = f'one program for {tokens}' if row['dispatch'] else 'a loop in Python'
      found.append(Ratio(pair, way, match['speedup']))
      if 'torch' in match:
        eager.setdefault(pair, Ratio(pair, EAGER, match['torch']))
  return [*found, *eager.values()]


def predicted(programs: dict) -> list[Ratio]:
  """Returns the ratios that compiled programs for an A100, the paper's GPU, let expect."""
  found = []
  for pair, (crt, transformer, _) in PAIRS.items():
    one, other = (programs[f'decode {name}'][ROW]['predicted_us'] for name in (crt, transformer))
    found += [
      Ratio(pair, f'A100, {words}, predicted', other[key] / one[key])
      for key, words in (('in_graph', 'a CUDA graph'), ('launched', 'single launches'))
    ]
  return found


def table(found: list[Ratio]) -> str:
  """Returns the ratios, a row for each way to start the kernels."""
  ways = dict.fromkeys(one.way for one in found)
  times = {one[:2]: f'{one.times:.2f}' for one in found}
  rows = [[way, *(times.get((pair, way), '') for pair in PAIRS)] for way in ways]
  return pages.table(['kernels are started by', *PAIRS], rows)


def measured(folder: pathlib.Path = RESULTS, compiled: pathlib.Path = COMPILED) -> list[Measured]:
  """Returns a verdict for every machine that was measured, then what is predicted."""
  found = []
  for path in sorted(folder.glob('latency*.json')):
    result = json.loads(path.read_text('utf-8'))
    if one := ratios(result):
      parts = [table(one), f'Batch 1, commit {result["commit"][:7]}; numbers: results/{path.name}.']
      machine = f'{result["device"]}, memory at {result["machine"]["bandwidth"] / 1e9:.0f} GB/s'
      found.append(Measured(machine, rule(one), spans(one), pages.paragraphs(*parts)))
  programs = json.loads(compiled.read_text('utf-8'))['results']
  expected = predicted(programs)
  text = f'{table(expected)}\n\nNot measured: programs by XLA for {ROW}, compiled without a GPU.'
  return [*found, Measured('A100, predicted', 'not measured', spans(expected), text)]


def spans(found: list[Ratio]) -> str:
  """Returns the lowest and highest ratio of each pair."""
  times = {pair: [one.times for one in found if one.pair == pair] for pair in PAIRS}
  return '; '.join(f'{p}: {min(t):.2f} to {max(t):.2f} times' for p, t in times.items() if t)


CLAIM = Claim(
  name='decode_speed',
  sentence='A CRT decodes 1.7 to 2.6 times as fast as the transformer of the same cost per token.',
  where='CRT, abstract and C.9',
  hypothesis='the ratios hold for compiled programs as for kernels that are launched one by one',
  published=(
    Published('tokens per second, D=1 against N=6', '919 / 351 = 2.6', 'N', 'crt.md 10.10'),
    Published('tokens per second, D=5 against N=12', '349 / 201 = 1.7', 'N', 'crt.md 10.10'),
  ),
  confounds=(
    'eager PyTorch, batch 1: nearly the ratio of the launches, D + 1 against N',
    'D=5 was timed alone',
  ),
  rule=rule,
  measured=measured,
)
