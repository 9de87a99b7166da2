"""Where the time of a compiled step goes on the device it ran on, by part of the model.

`python -m benchmarks.train --case=... --profile` calls it; `benchmarks.profile_cpu` has the parts.
"""

import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Callable

import jax

from benchmarks.profile_cpu import PARTS, op_names, own_times

# Found by the name of the operation; all others by the code that it came from.
KERNELS = (
  ('attention: fused kernel', r'cudnn|fmha|splash|flash'),
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
  """Part -> share, largest first. A GPU's events are called by kernel and name the operation in
  their arguments, a CPU's are called by operation."""
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


def part_of(name: str, source: str) -> str:
  """The part of the step that an operation belongs to."""
  for part, pattern in KERNELS:
    if re.search(pattern, f'{name} {source}'):
      return part
  # Layers that are recomputed are inside a checkpoint, as the output layer always is.
  parts = sorted(PARTS, key=lambda part: 'checkpoint' in part[1])
  return next((part for part, pattern in parts if re.search(pattern, source)), 'the rest')
