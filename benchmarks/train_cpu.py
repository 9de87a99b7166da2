"""Training speed of a CRT on CPU against plain PyTorch eager of the same model, in one run.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.train_cpu \
    --output=benchmarks/results/train_cpu.json

Needs torch unless --nopeer is given. Both sides do the same work: forward through K passes,
backward, gradient clipping and AdamW in float32, no dropout. The sides take turns; a turn is one
step that is not timed, in which the side gets its memory back from the other, and one that is.
Medians are compared. Two peers: attention scores materialised as in the paper's code, and PyTorch's
fused kernel. Huge pages (the first line above) spare both sides most page faults.
"""

import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import crt_jax
from benchmarks.results import publish

FIELDS = dict(vocab_size=8192, width=256, heads=4, layers=2, depth=5)
LENGTH, BATCH = 256, 16

_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Alternations between the two sides.', lower_bound=1)
_THREADS = flags.DEFINE_integer('threads', 2, 'Threads that PyTorch uses; JAX uses all cores.')
_PEER = flags.DEFINE_bool('peer', True, 'Whether to time PyTorch too.')


def jax_step(tokens, targets, with_text=False):
  """A function that runs one training step and returns its loss; the compiled text if asked."""
  model = crt_jax.build(dict(FIELDS, name='crt', rotary='integer_reversed'))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-4, weight_decay=0.01))
  params = jax.jit(model.init)(jax.random.key(0))
  carry = [params, optimizer.init(params)]
  batch = dict(tokens=jnp.asarray(tokens), targets=jnp.asarray(targets))

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
  rng = np.random.default_rng(0)
  tokens, targets = rng.integers(0, FIELDS['vocab_size'], (2, BATCH, LENGTH))
  steps = {'crt_jax': jax_step(tokens.astype(np.int32), targets.astype(np.int32))}
  if _PEER.value:
    from benchmarks.peer_torch_crt import training_step

    for name, fused in (('torch_materialised', False), ('torch_fused', True)):
      steps[name] = training_step(FIELDS, LENGTH, tokens, targets, fused, _THREADS.value)
  seconds = {name: [] for name in steps}
  for _ in range(_ROUNDS.value):
    for name, step in steps.items():
      step()
      start = time.perf_counter()
      step()
      seconds[name].append(time.perf_counter() - start)
  speed = {name: BATCH * LENGTH / statistics.median(s) for name, s in seconds.items()}
  publish(
    dict(
      what='tokens per second of one training step, median',
      model=FIELDS | dict(length=LENGTH, batch=BATCH, dtype='float32', threads=_THREADS.value),
      glibc_tunables=os.environ.get('GLIBC_TUNABLES', ''),
      tokens_per_second={name: round(value, 1) for name, value in speed.items()},
      ratio={name: round(speed['crt_jax'] / v, 3) for name, v in speed.items() if 'torch' in name},
      seconds={name: [round(s, 3) for s in values] for name, values in seconds.items()},
    )
  )


if __name__ == '__main__':
  app.run(main)
