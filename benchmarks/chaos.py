"""Real runs under interruptions: the same command must always end in the same bits.

  python -m benchmarks.chaos --minutes=30 --output=benchmarks/results/chaos.json

Tiny runs with dropout, accumulation and a drawn K, alone and as two processes, are hit at random
moments of their whole life and started again, until they finish. Parameters, metrics, evaluation
and sample are then compared with those of a run that nobody touched. Between two lives bytes of
checkpoints and token caches are flipped, cut off or deleted. A full disk and a read-only one need
the right to mount a tmpfs; where it is missing, the record says so. The record of an earlier call
is added to.
"""

import collections
import contextlib
import itertools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from configs import base
from crt_jax import json_text, schema

CASES = {'one process': ('', 1), 'a CART': ('cart', 1), 'two processes': ('two', 2)}

_MINUTES = flags.DEFINE_float('minutes', 10.0, 'How long new hits are made.', 0.0)
_OUTPUT = flags.DEFINE_string('output', None, 'The record, JSON; one that is there grows.')
_LANES = flags.DEFINE_integer('lanes', 2, 'How many runs are hit at a time.', 1)
_CASES = flags.DEFINE_multi_enum('cases', list(CASES), list(CASES), 'The runs, in turn.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the hits.', 0)

ROOT = pathlib.Path(__file__).parents[1]
ENDS = {  # what the process that is hit may end with, beside 0 where it had finished
  'SIGKILL': {-signal.SIGKILL},
  'SIGTERM': {75},
  'SIGINT': {130},
  'SIGSTOP and SIGCONT': set(),
  'full disk': {2},
  'read-only disk': {2},
}
DAMAGE = ('flipped byte', 'cut file', 'deleted file')
DISK = ('full disk', 'read-only disk')
MOST_HITS = 12  # of one run, which then may finish
DISK_BYTES = 96 * 2**20
STUCK = 240  # seconds, after which a process that should have ended is a fault


def get_config(arguments: str = '') -> ConfigDict:
  """Returns a run of seconds; also for --config=benchmarks/chaos.py:two."""
  small = dict(width=16, dropout=0.1)
  if arguments == 'cart':
    model = base.cart_model(prelude_layers=2, loops=3, loops_min=2, head_width=8, **small)
  else:
    model = base.crt_model(layers=1, heads=2, depth=2, depth_min=1, **small)
  config = schema.experiment(model)
  config.data.update(sequence_length=16, batch_size=8)
  config.optimizer.update(schedule='cosine', learning_rate=3e-3, warmup_steps=10)
  steps, every = (60, 10) if arguments == 'two' else (200, 20)
  config.train.update(steps=steps, eval_every=every, checkpoint_every=every)
  config.train.update(accumulation=2, log_every=5, keep_checkpoints=4)
  config.eval.update(batches=4, during_training_batches=1, whole=False, sequential=True)
  config.mesh.data = 2 if arguments == 'two' else 1
  config.sample.num_tokens = 8
  return config


class Lane:
  """A place where one run after the other is interrupted, on a disk of its own if possible."""

  def __init__(self, folder: pathlib.Path, programs: pathlib.Path):
    self.cache, self.programs = folder / 'cache', programs
    self.disk = folder / 'disk'
    self.disk.mkdir(parents=True)
    mounted = subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', f'size={DISK_BYTES}', 'tmpfs', self.disk], capture_output=True
    )
    self.has_disk = mounted.returncode == 0
    self.run = self.disk / 'run'

  def close(self) -> None:
    if self.has_disk:
      subprocess.run(['umount', '-l', self.disk], check=True)

  def start(self, case: str, programs: bool = True) -> list[subprocess.Popen]:
    """Starts all processes of a run; `programs`: whether compiled ones may be reused."""
    arguments, count = CASES[case]
    config = 'benchmarks/chaos.py' + (arguments and f':{arguments}')
    command = [sys.executable, '-m', 'experiments.main']
    command += [f'--config={config}', f'--workdir={self.run}']
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '',
      'CRT_JAX_CACHE': str(self.cache),
      'JAX_COMPILATION_CACHE_DIR': str(self.programs),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_ENABLE_COMPILATION_CACHE': str(programs).lower(),
    }
    ranks = [[]]
    if count > 1:
      with socket.create_server(('localhost', 0)) as server:
        port = server.getsockname()[1]
      common = [f'--coordinator=localhost:{port}', f'--num_processes={count}', '--join_timeout=60']
      ranks = [[*common, f'--process_id={rank}'] for rank in range(count)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    return [subprocess.Popen(command + rank, env=environment, **pipes) for rank in ranks]

  def steps(self) -> list[int]:
    """Returns the steps of the existing checkpoints."""
    folder = self.run / 'checkpoints'
    names = os.listdir(folder) if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())

  def reached(self, since: float) -> int:
    """Returns the last step with metrics on disk; 0 if none was written since a time."""
    file = self.run / 'metrics.jsonl'
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
      if file.stat().st_mtime > since:
        return json.loads(file.read_text('utf-8').splitlines()[-1])['step']
    return 0

  @contextlib.contextmanager
  def trouble(self, kind: str) -> Iterator[None]:
    """Makes the disk full, or read-only, while the context is open."""
    ballast = self.disk / 'ballast'
    if kind == 'full disk':
      with contextlib.suppress(OSError), open(ballast, 'wb', buffering=0) as file:
        while file.write(bytes(2**16)):
          pass
    else:
      subprocess.run(['mount', '-o', 'remount,ro', self.disk], check=True)
    try:
      yield
    finally:
      if kind == 'full disk':
        ballast.unlink()
      else:
        subprocess.run(['mount', '-o', 'remount,rw', self.disk], check=True)


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
  """Returns exit code and output of each process once all have ended."""
  found = []
  for process in processes:
    try:
      out, _ = process.communicate(timeout=STUCK)
    except subprocess.TimeoutExpired:
      process.kill()
      out, _ = process.communicate()
      found.append((None, f'{out}\ndid not end within {STUCK} s'))
    else:
      found.append((process.returncode, out))
  return found


def damage(files: list[pathlib.Path], kind: str, rng: random.Random) -> None:
  """Damages one of the files, as disks and people do."""
  file = rng.choice(sorted(files))
  size = file.stat().st_size
  if kind == 'deleted file':
    file.unlink()
  elif kind == 'cut file' or size == 0:
    os.truncate(file, rng.randrange(size) if size else 0)
  else:
    with open(file, 'r+b') as opened:
      position = rng.randrange(size)
      opened.seek(position)
      byte = opened.read(1)[0] ^ 1 << rng.randrange(8)
      opened.seek(position)
      opened.write(bytes([byte]))


def digest(run: pathlib.Path) -> dict:
  """Returns by name what has to be the same for two runs."""
  from crt_jax.runs import checkpoint

  _, params, _, step = checkpoint.load_params(str(run))
  import jax

  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text('utf-8').splitlines()]
  timed = ('tokens_per_second', 'mfu', 'input_seconds', 'training_seconds')
  return {
    **{jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves},
    'metrics': [{name: x for name, x in row.items() if name not in timed} for row in rows],
    'evaluation': json.loads((run / 'evaluation.json').read_text('utf-8'))['results'],
    'sample': (run / 'samples' / f'step_{step}.txt').read_text('utf-8'),
  }


class Record:
  """The record of what happened, over all lanes.

  Attributes:
    until: time after which the runs that are under way may finish.
  """

  until = math.inf

  def __init__(self, path: str | None):
    self._path = pathlib.Path(path) if path else None
    before = json.loads(self._path.read_text('utf-8')) if self._path and self._path.exists() else {}
    self.runs = collections.Counter(before.get('runs'))
    self.hits = collections.Counter(before.get('hits'))
    self.lost = before.get('lost_steps', {})
    self.codes = before.get('exit_codes', {})
    self.mismatches, self.faults = before.get('mismatches', []), before.get('faults', [])
    self.minutes, self.not_tried = before.get('minutes', 0.0), {}
    self._lock, self._since = threading.Lock(), time.monotonic()

  def hit(self, kind: str, codes: list[int], lost: int) -> None:
    with self._lock:
      self.hits[kind] += 1
      counted = self.codes.setdefault(kind, {})
      for code in codes:
        counted[str(code)] = counted.get(str(code), 0) + 1
      steps = self.lost.setdefault(kind, {'most': 0, 'total': 0})
      self.lost[kind] = {'most': max(steps['most'], lost), 'total': steps['total'] + lost}

  def fault(self, case: str, kind: str, code: int, out: str) -> None:
    with self._lock:
      self.faults.append({'case': case, 'hit': kind, 'exit_code': code, 'output': out[-2000:]})

  def ended(self, case: str, different: list[str]) -> None:
    with self._lock:
      self.runs[case] += 1
      if different:
        self.mismatches.append({'case': case, 'different': different})
      self.write()
      done = f'{sum(self.hits.values())} hits, {sum(self.runs.values())} runs'
      print(f'{done}, {len(self.mismatches)} mismatches, {len(self.faults)} faults', flush=True)

  def as_json(self) -> dict:
    from crt_jax.runs.provenance import origin

    return {
      'hits': dict(self.hits),
      'total_hits': sum(self.hits.values()),
      'runs': dict(self.runs),
      'exit_codes': self.codes,
      'lost_steps': self.lost,
      'mismatches': self.mismatches,
      'faults': self.faults,
      'not_tried': self.not_tried,
      'minutes': round(self.minutes + (time.monotonic() - self._since) / 60, 1),
      'origin': origin(),
    }

  def write(self) -> str:
    """Writes the record to its file and returns it as JSON."""
    text = json_text.dumps(self.as_json(), indent=2) + '\n'
    if self._path is not None:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._path.write_text(text, 'utf-8')
    return text


def live(lane: Lane, case: str, quiet: tuple, rng: random.Random, record: Record) -> None:
  """Runs one run from its beginning to its end with interruptions."""
  kinds = [kind for kind in ENDS if lane.has_disk or kind not in DISK]
  quiet_digest, life = quiet
  for number in itertools.count():
    last = number >= MOST_HITS or time.monotonic() > record.until
    kind = rng.choice(kinds)
    if not last:
      maybe_damage(lane, rng, record)
    with lane.trouble(kind) if kind == 'read-only disk' and not last else contextlib.nullcontext():
      since, processes = time.time(), lane.start(case, programs=rng.random() > 0.1)
      if not last:
        time.sleep(rng.uniform(0.1, life) if kind != 'read-only disk' else 0)
      target, reached = rng.choice(processes), lane.reached(since)
      running = target.poll() is None
      if not last and running:
        hit(lane, kind, target)
      found = ends(processes)
    codes = [code for code, _ in found]
    code, out = found[processes.index(target)]
    if not last and running:
      record.hit(kind, codes, max(0, reached - max([0, *lane.steps()])))
    expected = {0} if last or not running else {0} | ENDS[kind]
    silent = last or kind in ('SIGTERM', 'SIGINT', *DISK)
    complains = silent and any('Traceback' in text for _, text in found)
    if code not in expected or None in codes or complains:
      record.fault(case, kind if running else 'none', code, out)
    if all(code == 0 for code in codes):
      break
  try:
    found = digest(lane.run)
    names = quiet_digest | found
    different = [name for name in names if found.get(name) != quiet_digest.get(name)]
  except (OSError, ValueError) as error:
    different = [f'{type(error).__name__}: {error}']
  record.ended(case, different)
  shutil.rmtree(lane.run)


def maybe_damage(lane: Lane, rng: random.Random, record: Record) -> None:
  """Damages a token cache, or the newest of several checkpoints, with some probability."""
  kind, steps = rng.choice(DAMAGE), lane.steps()
  if rng.random() < 0.15:
    folder = lane.cache
  elif rng.random() < 0.3 and len(steps) > 1:
    folder = lane.run / 'checkpoints' / str(steps[-1])
  else:
    return
  files = [p for p in folder.rglob('*') if p.is_file() and p.suffix != '.lock']
  if files:
    damage(files, kind, rng)
    of = 'token cache' if folder == lane.cache else 'checkpoint'
    record.hit(f'{kind} of a {of}', [], 0)


def hit(lane: Lane, kind: str, target: subprocess.Popen) -> None:
  if kind == 'full disk':
    with lane.trouble(kind), contextlib.suppress(subprocess.TimeoutExpired):
      target.wait(timeout=3)
  elif kind == 'SIGSTOP and SIGCONT':
    target.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    target.send_signal(signal.SIGCONT)
  elif kind != 'read-only disk':
    target.send_signal(getattr(signal, kind))


def quiet_run(lane: Lane, case: str) -> tuple[dict, float]:
  """Returns the digest of an undisturbed run, and its seconds with cached tokens and programs.

  Two such runs must be equal.
  """
  found = []
  for _ in range(2):
    since = time.monotonic()
    for code, out in ends(lane.start(case)):
      if code != 0:
        raise SystemExit(f'{case}: {out}')
    found.append(digest(lane.run))
    seconds = time.monotonic() - since
    shutil.rmtree(lane.run)
  if found[0] != found[1]:
    raise SystemExit(f'{case}: two quiet runs differ, so that hits would show nothing')
  return found[0], seconds


def work(lane: Lane, number: int, quiet: dict, record: Record) -> None:
  """Interrupts one run after the other."""
  for life in itertools.count(number):
    if time.monotonic() > record.until:
      return
    rng = random.Random(f'{_SEED.value} {number} {life} {sum(record.runs.values())}')
    case = _CASES.value[life % len(_CASES.value)]
    live(lane, case, quiet[case], rng, record)


def main(argv: list[str]) -> None:
  del argv
  record = Record(_OUTPUT.value)
  for number in (signal.SIGTERM, signal.SIGINT):  # also where the parent ignores it: runs hear it
    signal.signal(number, lambda *_: setattr(record, 'until', 0.0))
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    lanes = [Lane(folder / str(number), folder / 'programs') for number in range(_LANES.value)]
    if not lanes[0].has_disk:
      record.not_tried = dict.fromkeys(DISK, 'no right to mount a tmpfs')
    try:
      with futures.ThreadPoolExecutor(len(lanes)) as pool:
        quiet = {case: quiet_run(lanes[0], case) for case in _CASES.value}
        record.until = min(record.until, time.monotonic() + 60 * _MINUTES.value)
        tasks = [
          pool.submit(work, lane, number, quiet, record) for number, lane in enumerate(lanes)
        ]
        for task in tasks:
          task.result()
    finally:
      for lane in lanes:
        lane.close()
  print(record.write())
  if record.mismatches or record.faults:
    raise SystemExit(1)


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  app.run(main)
