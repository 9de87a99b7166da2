"""Where the time of a compiled step goes on the device it ran on, by part of the model.

`python -m benchmarks.train --case=... --profile` and `benchmarks.profile_cpu` call it.
"""

import collections
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator

import jax

# (part, pattern of 'operation name'), the first that fits counts.
PARTS = (
  ('gradient norm, clipping, optimizer', r'/optimizer/'),
  ('storing and fetching activations for the backward pass', r'dynamic_(update_|index|slice)'),
  ('output layer: matrix products', r'output_layer/.*(dot_general|row_product|/add$)'),
  ('attention: scores and values', r'attention/((.*/)?b[^/]*->[^/]*/dot_general|row_attention)'),
  (
    'attention: query, key, value and output projections',
    r'(attention|KeysValues)/.*(dot_general|row_product)',
  ),
  ('attention: softmax and rotation', r'(attention|KeysValues)/'),
  ('feed-forward: matrix products', r'TransformerLayer/feed_forward/.*(dot_general|row_product)'),
  ('feed-forward: activation, bias', r'TransformerLayer/feed_forward/'),
  ('correction: matrix products', r'FeedForward/.*(dot_general|row_product)'),
  ('correction: activation, bias', r'FeedForward/'),
  ('norms and residuals', r'TransformerLayer|[Nn]orm'),
  ('core loops: blend, code and gate', r'core_loop'),
  ('output layer and loss: softmax', r'output_layer|cross_entropy'),
  ('embedding', r'Embedding'),
)
# Found by the name of the operation; all others by the code that it came from.
KERNELS = (
  ('attention: fused kernel', r'cudnn|fmha|splash|flash|dot_product_attention'),
  ('collectives', r'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|nccl'),
)


def profile(step: Callable, text: str) -> dict[str, float]:
  """Runs `step` once under the profiler; returns each part's share of the time of all operations.

  Args:
    step: runs the compiled program and waits for it.
    text: the compiled program, `executable.as_text()`.
  """
  with tempfile.TemporaryDirectory() as folder:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, profiler_options=options)
    step()
    jax.profiler.stop_trace()
    [file] = pathlib.Path(folder).rglob('*.trace.json.gz')
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
  return shares(events, text)


def shares(events: list[dict], text: str) -> dict[str, float]:
  """Returns part -> share of time, largest first.

  A GPU's events are named by kernel and have the operation in their arguments, a CPU's are named by
  operation.
  """
  sources, milliseconds = op_names(text), {}
  named = [
    {**event, 'name': event.get('args', {}).get('hlo_op', event.get('name', ''))}
    for event in events
  ]
  for name, duration in own_times(named):
    if name in sources:
      part = part_of(name, sources[name])
      milliseconds[part] = milliseconds.get(part, 0.0) + duration
  total = sum(milliseconds.values())
  largest_first = sorted(milliseconds.items(), key=lambda item: -item[1])
  return {part: round(time / total, 3) for part, time in largest_first}


def op_names(text: str) -> dict[str, str]:
  """Returns operation -> the code it came from ('' if XLA kept none), from compiled HLO text."""
  found = {}
  for line in text.splitlines():
    if match := re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = ', line):
      source = re.search(r'op_name="([^"]*)"', line)
      found[match[1]] = source[1] if source else ''
  return found


def own_times(events: list[dict]) -> Iterator[tuple[str, float]]:
  """Yields (name, milliseconds) of every event, without the events nested inside it."""
  lanes = collections.defaultdict(list)
  for event in events:
    if event.get('ph') == 'X':
      lanes[event['pid'], event['tid']].append(event)
  for lane in lanes.values():
    open_events = []
    for event in sorted(lane, key=lambda event: (event['ts'], -event['dur'])):
      while open_events and open_events[-1]['ts'] + open_events[-1]['dur'] <= event['ts']:
        open_events.pop()
      if open_events:
        yield open_events[-1]['name'], -event['dur'] / 1e3
      yield event['name'], event['dur'] / 1e3
      open_events.append(event)


def part_of(name: str, source: str) -> str:
  """Returns the part of the step that an operation belongs to."""
  for part, pattern in KERNELS:
    if re.search(pattern, f'{name} {source}'):
      return part
  source = re.sub(r'\b(jvp|transpose|vmap)\(|\)', '', source)  # as in transpose(jvp(Norm))/mul
  return next((part for part, pattern in PARTS if re.search(pattern, source)), 'the rest')
