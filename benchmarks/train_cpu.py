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
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from absl import app, flags

import crt_jax
from benchmarks.results import publish
from benchmarks.steps import PEER, THREADS, in_turns, medians, training_step


class Case(NamedTuple):
  """A model at the size that is timed."""

  fields: dict
  length: int
  batch: int

  def rows(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns random tokens and targets, int32, [batch, length] each."""
    shape = (2, self.batch, self.length)
    drawn = np.random.default_rng(0).integers(0, self.fields['vocab_size'], shape)
    tokens, targets = drawn.astype(np.int32)
    return tokens, targets

  def described(self) -> dict:
    """Returns what a result says about it."""
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


def jax_step(case: Case) -> tuple[Callable[[], float], str]:
  """Returns a function that runs one training step and returns its loss, and the compiled text."""
  optimizer = optax.adamw(2e-4, weight_decay=0.01)
  model = crt_jax.build(case.fields, jax.devices()[0])
  return training_step(model, optimizer, *case.rows())


def main(argv: list[str]) -> None:
  del argv
  case = CASES[MODEL.value]
  steps = {'crt_jax': jax_step(case)[0]}
  if PEER.value:
    peer = importlib.import_module(f'benchmarks.peer_torch_{MODEL.value}')
    rows = [array.astype(np.int64) for array in case.rows()]
    for name, fused in (('torch_materialised', False), ('torch_fused', True)):
      steps[name] = peer.training_step(case.fields, case.length, *rows, fused, THREADS.value)
  seconds = in_turns(steps)
  tokens = case.batch * case.length
  speed = {name: tokens / median for name, median in medians(seconds).items()}
  publish(
    dict(
      what='tokens per second of one training step, median',
      model=case.described() | dict(threads=THREADS.value),
      glibc_tunables=os.environ.get('GLIBC_TUNABLES', ''),
      tokens_per_second={name: round(value, 1) for name, value in speed.items()},
      ratio={name: round(speed['crt_jax'] / v, 3) for name, v in speed.items() if 'torch' in name},
      seconds={name: [round(s, 3) for s in values] for name, values in seconds.items()},
    )
  )


if __name__ == '__main__':
  app.run(main)
