"""Backpropagation through every position of a CRT: memory, its price in time, and speed.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.bptt \
    --output=benchmarks/results/bptt.json

Memory: temporaries of the compiled gradient of the loss, for T = 128 .. 4096, of windowed attention
by segments (target: growth like sqrt(T)) and of full attention by replay (target: linear in T, at
most 8 caches). Price: the time of either over that of a plain scan, which stores everything
(target: at most 1.4). Speed: one step of training for pointer chasing at C=128, T=272, 64 rows,
window 38, against PyTorch loops over positions (target: 6 times as fast), on one CPU device of all
cores and with the rows split over one per core; needs torch unless --nopeer is given.
`--only=memory` compiles and runs nothing.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import crt_jax
from benchmarks.results import publish
from benchmarks.steps import PEER, THREADS, in_turns, medians, training_step
from crt_jax.keys import random_key
from crt_jax.models.base import Model
from crt_jax.training.step import temporaries_of
from crt_jax.types import Array

FIELDS = dict(vocab_size=64, width=128, heads=4, window=38)
LENGTH, BATCH = 272, 64
MEMORY = dict(vocab_size=64, width=64, heads=4, batch=8)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
LOOPS = {  # of the memory table: window, backward
  'window 38, segments': (38, 'segments'),
  'window 38, replay': (38, 'replay'),
  'full, replay': (0, 'replay'),
}

_ONLY = flags.DEFINE_enum('only', 'all', ['all', 'memory', 'price', 'speed'], 'What to measure.')
_BACKWARDS = flags.DEFINE_list('backwards', ['replay', 'scan', 'segments'], 'Loops for the speed.')
_DEVICES = flags.DEFINE_integer('devices', 2, 'CPU devices that share the rows, beside one.')


def model_of(backward: str, **fields: Any) -> Model:
  """Returns a one-layer CRT trained by exact backpropagation."""
  described = dict(name='crt', layers=1, rotary='integer', driver='sequential', backward=backward)
  return crt_jax.build(described | fields)


def gradient_of(model: Model, length: int, batch: int) -> jax.stages.Compiled:
  """Returns the compiled gradient of the loss."""
  params = jax.eval_shape(model.init, random_key(0))
  rows = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  gradient = jax.jit(jax.grad(model.loss, has_aux=True))
  return gradient.lower(params, dict(tokens=rows, targets=rows)).compile()


def memory() -> dict:
  """Returns MiB of temporaries by loop and T, and relative to one cache for full attention."""
  fields = {name: value for name, value in MEMORY.items() if name != 'batch'}
  batch, found = MEMORY['batch'], {}
  for name, (window, backward) in LOOPS.items():
    model = model_of(backward, window=window, **fields)
    found[name] = {}
    for length in LENGTHS:
      compiled = gradient_of(model, length, batch)
      found[name][length] = temporaries_of(compiled) / 2**20
  cache = {T: 2 * batch * T * MEMORY['width'] * 4 / 2**20 for T in LENGTHS}
  return dict(
    memory_model=MEMORY | dict(layers=1, dtype='float32'),
    temporary_mib={n: {T: round(mib, 2) for T, mib in row.items()} for n, row in found.items()},
    growth_exponent={
      name: round(np.log2(row[LENGTHS[-1]] / row[LENGTHS[0]]) / 5, 2) for name, row in found.items()
    },
    full_replay_over_one_cache={T: round(found['full, replay'][T] / cache[T], 2) for T in LENGTHS},
  )


def price() -> dict:
  """Returns the seconds of a gradient at T = 512 by each loop, the plain scan included."""
  fields = {name: value for name, value in MEMORY.items() if name != 'batch'}
  length, batch = 512, MEMORY['batch']
  rng = np.random.default_rng(0)
  tokens, targets = rng.integers(0, MEMORY['vocab_size'], (2, batch, length)).astype(np.int32)
  rows, sides = dict(tokens=tokens, targets=targets), {}
  for window, backwards in ((38, ('scan', 'segments', 'replay')), (0, ('scan', 'replay'))):
    for backward in backwards:
      model = model_of(backward, window=window, **fields)
      params = jax.jit(model.init)(random_key(0))
      compiled = gradient_of(model, length, batch)
      name = f'window {window}' if window else 'full'
      sides[f'{name}, {backward}'] = functools.partial(_wait_for, compiled, params, rows)
  seconds = medians(in_turns(sides))
  ratio = {
    name: round(s / seconds[name.partition(',')[0] + ', scan'], 3) for name, s in seconds.items()
  }
  return dict(price_length=length, price_seconds=seconds, price_over_scan=ratio)


def _wait_for(compiled: jax.stages.Compiled, *arguments: Any) -> None:
  jax.block_until_ready(compiled(*arguments))


def speed() -> dict:
  """Returns the seconds of one training step of either side, median, and their ratio."""
  rng = np.random.default_rng(0)
  tokens, targets = rng.integers(0, FIELDS['vocab_size'], (2, BATCH, LENGTH)).astype(np.int32)
  sides = {
    f'crt_jax {backward}, devices={devices}': training_step(
      model_of(backward, **FIELDS), optax.adam(1e-3), tokens, targets, devices
    )[0]
    for devices in sorted({1, _DEVICES.value})
    for backward in _BACKWARDS.value
  }
  if PEER.value:
    from benchmarks import peer_torch_bptt

    for name, lean in (('torch', False), ('torch_lean', True)):
      sides[name] = peer_torch_bptt.training_step(
        FIELDS, LENGTH, tokens.astype(np.int64), targets.astype(np.int64), lean, THREADS.value
      )
  seconds = in_turns(sides)
  median = medians(seconds)
  fastest = min((name for name in median if name.startswith('crt_jax')), key=median.__getitem__)
  floor = products_floor()
  return dict(
    speed_model=FIELDS | dict(layers=1, length=LENGTH, batch=BATCH, dtype='float32'),
    step_seconds={name: [round(s, 3) for s in found] for name, found in seconds.items()},
    times_as_fast={
      name: round(s / median[fastest], 2) for name, s in median.items() if 'torch' in name
    },
    fastest=fastest,
    products_floor=floor | dict(fastest_over_it=round(median[fastest] / floor['seconds'], 2)),
  )


def products_floor() -> dict:
  """Returns the seconds of the step's matrix products alone, without recomputation.

  That is 6 x weights x tokens operations at the measured speed of products to 4C and back.
  """
  width, devices, count = FIELDS['width'], _DEVICES.value, 1000
  params = jax.eval_shape(model_of('scan', **FIELDS).init, random_key(0))
  del params['embedding']
  weights = sum(a.size for a in jax.tree.leaves(params) if a.size > 4 * width)  # the rest is biases
  mesh = jax.make_mesh((devices,), ('data',), (AxisType.Auto,), devices=jax.devices()[:devices])

  @jax.jit
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data'))
  def chain(x: Array, w: Array):
    return jax.lax.fori_loop(0, count, lambda _, x: (x @ w) @ w.T, x)

  x, w = jnp.ones((BATCH, width)), jnp.ones((width, 4 * width)) / (2 * width)
  seconds = min(in_turns(dict(chain=lambda: jax.block_until_ready(chain(x, w))))['chain'])
  per_second = 4 * BATCH * width * 4 * width * count / seconds
  operations = 6 * weights * BATCH * LENGTH
  return dict(
    gigaflop=round(operations / 1e9, 1),
    gigaflop_per_second=round(per_second / 1e9, 1),
    seconds=round(operations / per_second, 3),
  )


def main(argv: list[str]) -> None:
  del argv
  jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  parts = dict(memory=memory, price=price, speed=speed)
  chosen = parts if _ONLY.value == 'all' else {_ONLY.value: parts[_ONLY.value]}
  result = dict(
    what='exact backpropagation through the recurrence of a one-layer CRT',
    glibc_tunables=os.environ.get('GLIBC_TUNABLES', ''),
    threads=THREADS.value,
  )
  for part in chosen.values():
    result |= part()
  publish(result)


if __name__ == '__main__':
  app.run(main)
