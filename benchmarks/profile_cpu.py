"""Where the CPU time of a training step goes: one traced step of train_cpu's models, by part.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.profile_cpu --model=crt \
    --output=benchmarks/results/profile_cpu.json
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.profile_cpu --model=cart \
    --output=benchmarks/results/profile_cart_cpu.json

XLA names each operation of the compiled step after the code that it came from. The time of an
operation, without what it waits for inside, is added to the first part below whose pattern fits.
"""

import collections
import gzip
import json
import pathlib
import re
import tempfile

import jax
from absl import app

from benchmarks.results import publish
from benchmarks.train_cpu import CASES, MODEL, jax_step

# (part, pattern of 'operation name'), the first that fits counts.
PARTS = (
  ('storing and fetching activations for the backward pass', r'dynamic_(update_|index|slice)'),
  ('output layer and loss: matrix products', r'Linear/dot_general|checkpoint.*dot_general'),
  ('attention: scores and values', r'attention/b.*dot_general'),
  ('attention: query, key, value and output projections', r'attention/.*dot_general'),
  ('attention: softmax and rotation', r'attention/'),
  ('feed-forward: matrix products', r'TransformerLayer/feed_forward/.*dot_general'),
  ('feed-forward: activation, bias', r'TransformerLayer/feed_forward/'),
  ('correction: matrix products', r'FeedForward/.*dot_general'),
  ('correction: activation, bias', r'FeedForward/'),
  ('norms and residuals', r'TransformerLayer|[Nn]orm'),
  ('output layer and loss: softmax', r'checkpoint|exp|log'),
)


def main(argv):
  del argv
  case = CASES[MODEL.value]
  step, text = jax_step(case, with_text=True)
  step()
  with tempfile.TemporaryDirectory() as folder:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, profiler_options=options)
    step()
    jax.profiler.stop_trace()
    [file] = pathlib.Path(folder).rglob('*.trace.json.gz')
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
  sources = op_names(text)
  milliseconds = collections.Counter()
  for name, duration in own_times(events):
    if name in sources:
      milliseconds[part_of(sources[name])] += duration
  total = sum(milliseconds.values())
  publish(
    dict(
      what='share of the CPU time of one training step, by part',
      model=case.described(),
      operations_milliseconds=round(total, 1),
      share={part: round(time / total, 3) for part, time in milliseconds.most_common()},
    )
  )


def op_names(text: str) -> dict[str, str]:
  """Operation -> the code it came from ('' where XLA kept none), from compiled HLO text."""
  found = {}
  for line in text.splitlines():
    if match := re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = ', line):
      source = re.search(r'op_name="([^"]*)"', line)
      found[match[1]] = source[1] if source else ''
  return found


def own_times(events: list[dict]):
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


def part_of(source: str) -> str:
  """The part of the step that an operation belongs to."""
  return next((part for part, pattern in PARTS if re.search(pattern, source)), 'the rest')


if __name__ == '__main__':
  app.run(main)
