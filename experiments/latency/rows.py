"""The rows of the table: their list, measurement and formatting."""

import dataclasses
import functools
import importlib
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from crt_jax.cli.user_errors import Mistake
from crt_jax.program import install
from crt_jax.rounding import round_up

if TYPE_CHECKING:
  from experiments.latency.decoder import Decoder, Point
  from experiments.latency.floors import Traffic
  from experiments.latency.machine import Machine

PEERS = dict(
  torch='benchmarks.peer_torch_decode:timer',
  torch_compiled='benchmarks.peer_torch_decode:compiled_timer',
  transformers='benchmarks.peer_transformers_decode:timer',
  transformers_static='benchmarks.peer_transformers_decode:static_timer',
)
# crt.md, 10.10: milliseconds per token on one A100-SXM4-80GB, bfloat16 autocast, eager PyTorch.
PAPER = dict(
  crt_d1_c2048=1.09, transformer_n6=2.85, crt_d5_c1120=2.86, crt_d6_c1024=2.73, transformer_n12=4.96
)
HEADER = (
  f'{"model":17}{"batch":>6}{"context":>8} {"dtype":9}{"dispatch":>9}{"ms":>9}{"p95":>9}'
  f'{"tokens/s":>10}{"first ms":>10}{"streamed":>10}{"resident":>10}{"launches":>10}'
  f'{"% s":>5}{"% r":>5}{"% l":>5}{"% d":>5}{"load":>6}  peers'
)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One row to be measured: a model's name and fields, the point, and the kind of timing."""

  name: str
  fields: dict
  point: 'Point'
  timing: tuple

  def identity(self) -> str:
    """Returns what must be equal for an earlier measurement to count."""
    values = (self.name, self.fields, dataclasses.asdict(self.point), self.timing)
    return json.dumps(values, sort_keys=True)


def plan(config: ConfigDict, models: dict[str, dict]) -> list[Entry]:
  """Returns all rows: every model at the first value of each axis, and each axis varied alone.

  Raises:
    Mistake: an empty axis or a peer that cannot be had.
    ValueError: a value or a model field that cannot be; nothing is compiled yet.
  """
  import crt_jax
  from crt_jax.decoding.sampling import Sampling
  from crt_jax.models.base import PREFILL_METHODS
  from crt_jax.schema.fields import one_of
  from experiments.latency.decoder import Point

  for name in ('tokens', 'rounds', 'warmup', 'bandwidth_megabytes'):
    if config[name] < 1:
      raise Mistake(f'--config.{name}={config[name]} must be at least 1')
  one_of('prefill', config.prefill, PREFILL_METHODS)
  Sampling(config.temperature, config.top_k)
  for peer in config.peers:
    peer_timer(peer)
  for fields in models.values():
    crt_jax.build(fields)
  points = [Point(*values) for values in _points(config)]
  timing = (config.tokens, config.rounds, config.warmup, tuple(config.peers))
  return [Entry(name, fields, point, timing) for name, fields in models.items() for point in points]


def _points(config: ConfigDict) -> list[tuple]:
  axes = [config.batches, config.contexts, config.dtypes, config.dispatches]
  for name, values in zip(('batches', 'contexts', 'dtypes', 'dispatches'), axes, strict=True):
    if not values:
      raise Mistake(f'--config.{name} is empty; give at least one value')
  first = tuple(values[0] for values in axes)
  varied = [
    (*first[:i], value, *first[i + 1 :]) for i, values in enumerate(axes) for value in values
  ]
  return list(dict.fromkeys(varied))


def peer_timer(name: str) -> Callable:
  """Returns the function that makes the timer of a peer.

  Raises:
    Mistake: it is unknown, or what it needs is not installed.
  """
  if name not in PEERS:
    raise Mistake(f'--config.peers names {name!r}; known: {", ".join(PEERS)}')
  module, _, function = PEERS[name].partition(':')
  try:
    return getattr(importlib.import_module(module), function)
  except ModuleNotFoundError as error:
    raise Mistake(
      f'the peer {name!r} needs {error.name}: {install("peers")}, or leave it '
      "out with --config.peers='()'"
    ) from None


def measure(entry: Entry, config: ConfigDict, machine: 'Machine') -> dict:
  """Times one row in turns with its peers, with memory bandwidth before and after.

  A machine whose memory others use is faster in some minutes than in others.
  """
  import crt_jax
  from crt_jax.decoding.sampling import Sampling
  from experiments.latency import decoder as timing
  from experiments.latency import floors
  from experiments.latency.machine import quantiles, read_bandwidth

  point = entry.point
  model, params = timing.random_params(crt_jax.build(entry.fields), point.dtype)
  cache_slots = capacity(config, point.context)
  sampling = Sampling(config.temperature, config.top_k)
  decoder = timing.Decoder(model, params, point, cache_slots, sampling)
  timers = {'crt_jax': functools.partial(_round, decoder, config)}
  about = {}
  for peer in config.peers:
    arguments = (entry.fields, point.batch, point.context, point.dtype)
    try:
      make = functools.partial(
        peer_timer(peer), *arguments, cache_slots, threads=len(os.sched_getaffinity(0))
      )
      _, about[peer] = make()
    except ValueError:
      continue  # this peer has no such model
    timers[peer] = functools.partial(_peer_round, make, config)
  read = functools.partial(read_bandwidth, config.bandwidth_megabytes, point.dtype, repeats=2)
  before = read()
  seconds = timing.alternate(timers, config.rounds)
  machine = dataclasses.replace(machine, bandwidth=max(before, read()))
  median, p95 = quantiles(seconds.pop('crt_jax'))
  traffic = floors.traffic(model.config, point.dtype, point.batch, point.context)
  floor = floors.floor(
    traffic, machine.bandwidth, _peak_flops(point.dtype), decoder.launches, machine.launch
  )
  peers = {}
  for peer, values in seconds.items():
    peer_median, peer_p95 = quantiles(values)
    peers[peer] = dict(
      **about[peer], seconds=peer_median, p95=peer_p95, speedup=peer_median / median
    )
  return dict(
    model=entry.name,
    fields=entry.fields,
    **dataclasses.asdict(point),
    seconds=median,
    p95=p95,
    tokens_per_second=point.batch / median,
    first_token=decoder.first_token(config.prefill),
    draw=decoder.draw(),
    launches=decoder.launches,
    traffic=dataclasses.asdict(traffic),
    floor=dataclasses.asdict(floor),
    share={name: floors.share(value, median) for name, value in dataclasses.asdict(floor).items()},
    datasheet_share=_datasheet_share(traffic, median),
    peers=peers,
    machine=dataclasses.asdict(machine),
    load=os.getloadavg()[0],
  )


def capacity(config: ConfigDict, context: int) -> int:
  """Returns the cache slots, the same for every dispatch, so one program reads all prompts."""
  from crt_jax.recurrence.state import SEEN

  return round_up(context + config.warmup + config.tokens + 2 * max(1, *config.dispatches), SEEN)


def _round(decoder: 'Decoder', config: ConfigDict) -> list[float]:
  decoder.reset()
  decoder.time(config.warmup)
  return decoder.time(config.tokens)


def _peer_round(make: Callable, config: ConfigDict) -> list[float]:
  run, _ = make()
  run(config.warmup)
  return run(config.tokens)


def datasheet_bandwidth() -> float:
  """Returns the bytes per second that the device's maker states; 0 if unknown."""
  import jax

  from experiments.latency import floors

  return floors.datasheet_bandwidth(jax.devices()[0].device_kind)


def _datasheet_share(traffic: 'Traffic', seconds: float) -> float:
  from experiments.latency import floors

  bandwidth = datasheet_bandwidth()
  return floors.share(floors.floor(traffic, bandwidth).streamed, seconds)


def _peak_flops(dtype: str) -> float:
  """Returns the datasheet's FLOP/s, which it states for bfloat16; 0 for anything else."""
  import jax

  from crt_jax import accounting

  kind = jax.devices()[0].device_kind
  return accounting.peak_flops(kind) if dtype == 'bfloat16' else 0.0


def compare(rows: list[dict], matches: dict[str, str]) -> None:
  """Adds to each row its speed-up over its transformer at the same point."""
  at = {_key(row, row['model']): row for row in rows}
  for row in rows:
    other = at.get(_key(row, matches.get(row['model'])))
    if other is not None:
      row['match'] = dict(model=other['model'], speedup=other['seconds'] / row['seconds'])
      for peer in row['peers'].keys() & other['peers'].keys():
        ratio = other['peers'][peer]['seconds'] / row['peers'][peer]['seconds']
        row['match'][peer] = ratio


def _key(row: dict, model: str | None) -> tuple:
  return model, row['batch'], row['context'], row['dtype'], row['dispatch']


def describe(machine: 'Machine', device: str) -> str:
  """Returns the line above the table."""
  stated = datasheet_bandwidth()
  share = f'{machine.bandwidth / stated:.0%} of its datasheet' if stated else 'datasheet unknown'
  return (
    f'{device}: reads {machine.bandwidth / 1e9:.1f} GB/s ({share}); one kernel in a program '
    f'{1e6 * machine.launch:.2f} us, a call from Python {1e6 * machine.dispatch:.1f} us, and back '
    f'{1e6 * machine.round_trip:.1f} us'
  )


def line(row: dict) -> str:
  """Returns a row of the table, in milliseconds.

  It has the % of the time that each floor explains, and (d), the time to draw the token.
  """
  dispatch = f'scan {row["dispatch"]}' if row['dispatch'] else 'python'
  is_paper = row['batch'] == 1 and row['dtype'] == 'bfloat16' and row['model'] in PAPER
  paper = f'  paper (A100, eager) {PAPER[row["model"]]:.2f} ms' if is_paper else ''
  floor, share = row['floor'], row['share']
  peers = '  '.join(
    f'{name} {1e3 * peer["seconds"]:.2f} ms ({peer["speedup"]:.2f}x)'
    for name, peer in row['peers'].items()
  )
  return (
    f'{row["model"]:17.17}{row["batch"]:6}{row["context"]:8} {row["dtype"]:9}{dispatch:>9}'
    f'{1e3 * row["seconds"]:9.3f}{1e3 * row["p95"]:9.3f}{row["tokens_per_second"]:10.1f}'
    f'{1e3 * row["first_token"]:10.1f}{1e3 * floor["streamed"]:10.3f}'
    f'{1e3 * floor["resident"]:10.3f}{1e3 * floor["launches"]:10.3f}'
    f'{share["streamed"]:5.0%}{share["resident"]:5.0%}{share["launches"]:5.0%}'
    f'{row["draw"] / row["seconds"]:5.0%}{row["load"]:6.1f}  {peers}{paper}'
  )


def comparison(rows: list[dict]) -> str:
  """Returns each model's speed-up over its transformer, beside the paper's milliseconds."""
  lines = ['against the matching transformer, times faster:']
  for row in rows:
    if 'match' not in row:
      continue
    point = f'batch {row["batch"]}, context {row["context"]}, {row["dtype"]}'
    dispatch = f'scan {row["dispatch"]}' if row['dispatch'] else 'python'
    match = dict(row['match'])
    text = f'  {row["model"]:17} {match.pop("model"):17} {point}, {dispatch}: '
    text += f'{match.pop("speedup"):.2f}'
    text += ''.join(f'; in {peer} {ratio:.2f}' for peer, ratio in sorted(match.items()))
    if row['model'] in PAPER and row['match']['model'] in PAPER:
      text += f'; paper {PAPER[row["match"]["model"]] / PAPER[row["model"]]:.2f}'
    lines.append(text)
  return '\n'.join(lines) if len(lines) > 1 else 'no model beside its matching transformer'
