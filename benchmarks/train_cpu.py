"""Training speed on CPU against plain PyTorch eager of the same model, in one run.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.train_cpu --model=crt \
    --output=benchmarks/results/train_cpu.json
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.train_cpu --model=cart \
    --output=benchmarks/results/train_cart_cpu.json

Needs torch unless --nopeer is given. Both sides do the same work: forward through K passes or R
loops, backward, gradient clipping and AdamW in float32, no dropout. The sides take turns; a turn is
one step that is not timed, in which the side gets its memory back from the other, and one that is.
Medians are compared. Two peers: attention scores materialised as in the CRT paper's code, and
PyTorch's fused kernel. Huge pages (GLIBC_TUNABLES above) spare both sides most page faults.
"""

import importlib
import os
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import crt_jax
from benchmarks.results import publish


class Case(NamedTuple):
  """A model at the size that is timed."""

  fields: dict
  length: int
  batch: int

  def rows(self) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and targets, int32, [batch, length] each."""
    shape = (2, self.batch, self.length)
    drawn = np.random.default_rng(0).integers(0, self.fields['vocab_size'], shape)
    return tuple(drawn.astype(np.int32))

  def described(self) -> dict:
    """What a result says about it."""
    return self.fields | dict(length=self.length, batch=self.batch, dtype='float32')


CASES = {
  'crt': Case(
    dict(
      name='crt',
      vocab_size=8192,
      width=256,
      heads=4,
      layers=2,
      depth=5,
      rotary='integer_reversed',
    ),
    length=256,
    batch=16,
  ),
  'cart': Case(
    dict(name='cart', vocab_size=8192, width=256, prelude_layers=6, loops=6), length=512, batch=8
  ),
}
MODEL = flags.DEFINE_enum('model', 'crt', list(CASES), 'Which model.')
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Alternations between the sides.', lower_bound=1)
_THREADS = flags.DEFINE_integer('threads', 2, 'Threads that PyTorch uses; JAX uses all cores.')
_PEER = flags.DEFINE_bool('peer', True, 'Whether to time PyTorch too.')


def jax_step(case: Case, with_text=False):
  """A function that runs one training step and returns its loss; the compiled text if asked."""
  model = crt_jax.build(case.fields)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-4, weight_decay=0.01))
  params = jax.jit(model.init)(jax.random.key(0))
  carry = [params, optimizer.init(params)]
  batch = dict(zip(('tokens', 'targets'), map(jnp.asarray, case.rows()), strict=True))

  def update(params, state, batch):
    (loss, _), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, batch)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss

  compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*carry, batch).compile()

  def step() -> float:
    carry[0], carry[1], loss = compiled(*carry, batch)
    return float(loss)

  return (step, compiled.as_text()) if with_text else step


def main(argv):
  del argv
  case = CASES[MODEL.value]
  steps = {'crt_jax': jax_step(case)}
  if _PEER.value:
    peer = importlib.import_module(f'benchmarks.peer_torch_{MODEL.value}')
    rows = [array.astype(np.int64) for array in case.rows()]
    for name, fused in (('torch_materialised', False), ('torch_fused', True)):
      steps[name] = peer.training_step(case.fields, case.length, *rows, fused, _THREADS.value)
  seconds = {name: [] for name in steps}
  for _ in range(ROUNDS.value):
    for name, step in steps.items():
      step()
      start = time.perf_counter()
      step()
      seconds[name].append(time.perf_counter() - start)
  tokens = case.batch * case.length
  speed = {name: tokens / statistics.median(s) for name, s in seconds.items()}
  publish(
    dict(
      what='tokens per second of one training step, median',
      model=case.described() | dict(threads=_THREADS.value),
      glibc_tunables=os.environ.get('GLIBC_TUNABLES', ''),
      tokens_per_second={name: round(value, 1) for name, value in speed.items()},
      ratio={name: round(speed['crt_jax'] / v, 3) for name, v in speed.items() if 'torch' in name},
      seconds={name: [round(s, 3) for s in values] for name, values in seconds.items()},
    )
  )


if __name__ == '__main__':
  app.run(main)
