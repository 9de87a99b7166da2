"""Makes the most of a few minutes on a GPU or TPU: what is worth most is measured first.

  python -m benchmarks.accelerator --dry-run                       the plan, with times
  python -m benchmarks.accelerator --minutes=9 --output=runs/gpu
  python -m benchmarks.accelerator --smoke --output=runs/smoke     all of it as toys, on a CPU

Each line of STEPS is a process of its own with its own limit. Its result is a row of results.jsonl
as soon as it ends, also where it fails or is ended: `said` holds its last lines, `found` the files
that it wrote, XLA's autotuning results among them. log.txt has the whole output, latency/ the table
and figures of experiments.latency: eight files in all, two folders deep.

The same command goes on: steps that are done for this commit, device and version of JAX are left
out, those that failed wait behind the others. On a machine that starts empty, put the folder back
first. --commit names the commit of a copy without .git. `benchmarks/wheels.sh` gathers the packages
that a machine with JAX, Flax, Optax, Orbax and pytest may lack.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from configs import latency_smoke
from crt_jax import cli, json_text
from crt_jax.runs.provenance import commit, now

PAIR = '--config.only=crt_d1_c2048,transformer_n6'
FOUR = f'{PAIR},crt_d5_c1120,transformer_n12'
LATENCY = ('--config=configs/latency.py', '--config.peers=()', '--workdir={output}/latency')
TOYS = (
  '--config.batches=(1,)',
  '--config.contexts=(1,)',
  '--config.dispatches=(4,)',
)
# The first value of each axis of configs/latency.py.
ONE_BATCH, ONE_CONTEXT = '--config.batches=(1,)', '--config.contexts=(1,)'
ONE_DTYPE, ONE_DISPATCH = "--config.dtypes=('bfloat16',)", '--config.dispatches=(64,)'
TRAIN_TOY = ('--smoke', '--steps=1', '--groups=1')
QUICK_TESTS = '(118- or not materialised) and not a_run_on and not toy_size'
PEERS = f'--config.peers={latency_smoke.PEERS}'


@dataclasses.dataclass(frozen=True)
class Step:
  """One process: `python -m module flags`.

  Attributes:
    takes: seconds that it is expected to take; with fewer left it is not begun.
    limit: seconds after which it is ended.
    flags: {scratch} stands for a folder whose results become part of the row, {output} for the
      folder of --output.
    smoke: the flags of a smoke run; None = the same, () = left out, since its toy is another's.
    needs: a module without which it is left out.
  """

  name: str
  takes: int
  limit: int
  module: str
  flags: tuple[str, ...]
  smoke: tuple[str, ...] | None = None
  needs: str = ''

  def command(self, is_smoke: bool, **folders: str) -> list[str]:
    words = self.flags if self.smoke is None or not is_smoke else self.smoke
    return [sys.executable, '-m', self.module, *(word.format(**folders) for word in words)]


def _latency(name: str, takes: int, limit: int, *words: str, smoke: tuple[str, ...] = ()) -> Step:
  return Step(name, takes, limit, 'experiments.latency', (*LATENCY, *words), smoke)


def _training(case: str, *toy: str) -> Step:
  words = (f'--case={case}', '--output={scratch}/train.json')
  smoke = (*words, *toy) if toy else ()
  return Step(f'training of {case}', 40, 80, 'benchmarks.train', words, smoke)


TESTS = ('tests/gpu', '-v', '--color=no')
# Of corpora/, where experiments.fetch puts them; what is cut off goes on from its last checkpoint.
CLAIMS = ('--run=layers_or_recurrence,conversion,cart_or_dense', '--size=gpu')


DEVICE = Step(
  'device and versions',
  15,
  60,
  'benchmarks.ceilings',
  ('--parts=', '--output={scratch}/device.json'),
)
# In the order of their worth. What is to be measured beside these is one line more.
STEPS = (
  DEVICE,
  Step(
    'ceilings',
    30,
    75,
    'benchmarks.ceilings',
    ('--output={scratch}/ceilings.json',),
    ('--output={scratch}/ceilings.json', '--smoke'),
  ),
  Step('quick tests', 60, 110, 'pytest', (*TESTS, f'-k={QUICK_TESTS}')),
  Step(
    'kernels and memory',
    50,
    100,
    'benchmarks.kernels',
    ('--output={scratch}/kernels.json',),
    ('--output={scratch}/kernels.json', '--smoke'),
  ),
  _latency(
    'latency', 75, 130, FOUR, ONE_BATCH, ONE_CONTEXT, ONE_DTYPE, ONE_DISPATCH,
    smoke=('--config=configs/latency_smoke.py', '--workdir={output}/latency', *TOYS),
  ),
  _training('cart_d1024', *TRAIN_TOY),
  _training('crt_d5_c1120', *TRAIN_TOY),
  Step(
    'peers',
    75,
    140,
    'experiments.latency',
    (
      *LATENCY[:1], '--workdir={scratch}', PEERS, PAIR,
      ONE_BATCH, ONE_CONTEXT, ONE_DTYPE, ONE_DISPATCH,
    ),
    ('--config=configs/latency_smoke.py:peers', '--workdir={scratch}', *TOYS),
    needs='torch',
  ),  # fmt: skip
  Step(
    'latency of our kernels', 40, 100, 'experiments.latency',
    ('--config=configs/latency.py:pallas', '--workdir={scratch}'), smoke=(),
  ),
  _latency('latency by tokens a call', 60, 150, PAIR, ONE_BATCH, ONE_CONTEXT, ONE_DTYPE),
  _latency('latency by context', 60, 200, PAIR, ONE_BATCH, ONE_DTYPE, ONE_DISPATCH),
  _training('crt_d5_c1120-dropout'),
  _training('dense_12l_d1024'),
  _latency('latency by batch', 60, 250, PAIR, ONE_CONTEXT, ONE_DTYPE, ONE_DISPATCH),
  _latency('the rest of latency', 60, 3600),
  Step('all tests', 60, 400, 'pytest', TESTS, smoke=()),
  Step('a piece of the claims', 200, 480, 'experiments.claims', CLAIMS, smoke=()),
)  # fmt: skip

_MINUTES = flags.DEFINE_float('minutes', 9.0, 'Of everything together.', lower_bound=0.1)
_OUTPUT = flags.DEFINE_string('output', 'runs/accelerator', 'Folder of results; it is added to.')
_COMMIT = flags.DEFINE_string('commit', '', 'What is measured, where there is no .git.')
_DRY_RUN = flags.DEFINE_bool('dry-run', False, 'Print the plan and measure nothing.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Toys on a CPU, without limits of single steps.')

RESULTS, LOG, TUNED = 'results.jsonl', 'log.txt', 'autotuned.txtpb'
LINES = 60  # of its output that a row keeps
DONE = 'done'
PLATFORMS = dict(gpu='cuda,cpu', tpu='tpu,cpu')  # value of JAX_PLATFORMS, by backend


def main(argv: list[str]) -> None:
  del argv
  begun = time.monotonic()
  output = pathlib.Path(_OUTPUT.value)
  rows = read(output / RESULTS)
  same: dict[str, Any] = dict(commit=_COMMIT.value or commit(), smoke=_SMOKE.value)
  if _DRY_RUN.value:
    print(plan(order(STEPS, rows, same), 60 * _MINUTES.value))
    return
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the step too
  output.mkdir(parents=True, exist_ok=True)
  environment = os.environ | dict(PYTHONUNBUFFERED='1')
  is_tuning_kept = True
  if _SMOKE.value:
    environment['JAX_PLATFORMS'] = 'cpu'

  def measure(step: Step) -> dict[str, Any]:
    left = 60 * _MINUTES.value - (time.monotonic() - begun)
    limit = left if _SMOKE.value else min(left, step.limit)
    print(f'{_clock(time.monotonic() - begun)}  {step.name} ...', flush=True)
    about = dict(step=step.name, **same, at=now(), load=os.getloadavg()[0])
    row: dict[str, Any] = about | run(step, limit, output, environment, is_tuning_kept)
    with open(output / RESULTS, 'a', encoding='utf-8') as file:
      file.write(json_text.dumps(row) + '\n')
    last = '' if row['outcome'] == DONE else f': {(row["said"] or ["it said nothing"])[-1]}'
    print(f'       {row["outcome"]} after {row["seconds"]:.0f} s{last}', flush=True)
    return row

  first = measure(DEVICE)
  if first['outcome'] != DONE:  # a version of XLA that does not know the flag ends every process
    is_tuning_kept = False
    first = measure(DEVICE)
  device = first['found'].get('device.json', {})
  same |= dict(device=device.get('device', ''), jax=device.get('versions', {}).get('jax', ''))
  if device.get('platform') == 'cpu' and not _SMOKE.value:
    raise cli.Mistake(
      f'JAX found no accelerator, only {same["device"]}; --smoke measures toys on it'
    )
  if device.get('platform') in PLATFORMS:
    environment.setdefault('JAX_PLATFORMS', PLATFORMS[device['platform']])
  for step in order(STEPS, rows, same):
    left = 60 * _MINUTES.value - (time.monotonic() - begun)
    if left < (1 if _SMOKE.value else step.takes):
      print(f'       {step.name}: {left:.0f} s are left, it takes {step.takes}')
    else:
      measure(step)


def read(path: pathlib.Path) -> list[dict]:
  """Returns the rows that are there; a line that was cut off is left out."""
  rows = []
  for line in path.read_bytes().splitlines() if path.exists() else ():
    with contextlib.suppress(ValueError):
      rows.append(json_text.parse(line))
  return rows


def order(steps: tuple[Step, ...], rows: list[dict], same: dict) -> list[Step]:
  """Returns the steps that are not done, those that were never tried first."""
  ours = [row for row in rows if same.items() <= row.items()]
  done = {row['step'] for row in ours if row['outcome'] == DONE}
  failed = {row['step'] for row in ours} - done
  left = [step for step in steps if step is not DEVICE and step.name not in done]
  left = [step for step in left if not step.needs or importlib.util.find_spec(step.needs)]
  left = [step for step in left if step.smoke != () or not same['smoke']]
  return sorted(left, key=lambda step: step.name in failed)


def plan(steps: list[Step], seconds: float) -> str:
  """Returns the steps that would run within so many seconds, when, and for how long at most."""
  lines, start = [f'{"begins":>6}{"takes":>7}{"limit":>7}  step'], 0
  for step in (DEVICE, *steps):
    begins = _clock(start) if start + step.takes <= seconds else 'later'
    command = step.command(_SMOKE.value, scratch='SCRATCH', output=_OUTPUT.value)
    lines.append(f'{begins:>6}{step.takes:7}{step.limit:7}  {step.name}')
    lines.append(f'{"":22}{shlex.join(["python", *command[1:]])}')
    start += step.takes
  lines.append(f'{_clock(start)} in all as expected; each step has its limit and what is left')
  return '\n'.join(lines)


def run(
  step: Step,
  limit: float,
  output: pathlib.Path,
  environment: dict[str, str],
  is_tuning_kept: bool = True,
) -> dict[str, Any]:
  """Runs a step for at most `limit` seconds; returns its row without its name."""
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as scratch, open(output / LOG, 'ab') as log:
    log.write(f'\n== {step.name}, {now()}\n'.encode())
    log.flush()
    begin = log.tell()
    if is_tuning_kept:
      words = (
        environment.get('XLA_FLAGS', ''),
        f'--xla_gpu_dump_autotune_results_to={scratch}/{TUNED}',
      )
      environment = environment | dict(XLA_FLAGS=' '.join(words))
    command = step.command(_SMOKE.value, scratch=scratch, output=str(output))
    process = subprocess.Popen(
      command,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=environment,
      process_group=0,  # so that its children end with it
    )
    try:
      code = process.wait(max(limit, 0.0))
    except subprocess.TimeoutExpired:
      code = None
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    found = {file.name: _content(file) for file in sorted(pathlib.Path(scratch).iterdir())}
  said = (output / LOG).read_bytes()[begin:].decode('utf-8', 'replace').splitlines()[-LINES:]
  ended = 'over its limit' if code is None else f'failed with exit code {code}'
  return dict(
    outcome=DONE if code == 0 else ended,
    seconds=round(time.monotonic() - start, 1),
    limit=round(limit),
    command=shlex.join(['python', *command[1:]]).replace(scratch, '{scratch}'),
    said=said,
    found={name: content for name, content in found.items() if content is not None},
  )


def _content(file: pathlib.Path) -> dict | str | None:
  """Returns the content of a step's result file: JSON, or a text; None for anything else."""
  if file.suffix == '.json':
    try:
      return json_text.parse(file.read_bytes())
    except ValueError as error:
      return str(error)
  return file.read_text('utf-8', 'replace') if file.suffix == '.txtpb' else None


def _clock(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))[2:]


if __name__ == '__main__':
  cli.run(main)
