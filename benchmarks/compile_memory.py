"""How compile time and temporary memory of a CRT's gradient grow with D, K and rematerialisation.

  python -m benchmarks.compile_memory --output=benchmarks/results/compile_memory.json

Compiles and never runs. Targets: D=12 compiles in at most 1.3x the time of D=2; with remat='layer'
K=10 needs at most 1.2x the memory of K=2, and at D=5, K=10 at most 0.4x of remat='pass'.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from absl import app

import crt_jax
from benchmarks.results import publish

FIELDS = dict(name='crt', vocab_size=512, width=256, heads=4, rotary='integer_reversed')
LENGTH, BATCH = 256, 16
REPEATS = 3


def compiled(layers: int, depth: int, remat: str):
  """Seconds of compiling the loss's gradient, and bytes of temporaries on one device."""
  model = crt_jax.build(FIELDS | dict(layers=layers, depth=depth, remat=remat))
  params = jax.eval_shape(model.init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
  gradient = jax.jit(jax.grad(model.loss, has_aux=True))
  lowered = gradient.lower(params, dict(tokens=rows, targets=rows))
  start = time.perf_counter()
  executable = lowered.compile()
  seconds = time.perf_counter() - start
  return seconds, executable.memory_analysis().temp_size_in_bytes


def main(argv):
  del argv
  compiled(1, 2, 'none')  # the first compilation of a process loads the compiler
  seconds = {2: [], 12: []}
  for _ in range(REPEATS):
    for layers, found in seconds.items():
      found.append(compiled(layers, 5, 'none')[0])
  compile_seconds = {layers: statistics.median(found) for layers, found in seconds.items()}
  memory = {
    f'D=5 K={depth} remat={remat}': compiled(5, depth, remat)[1] / 2**20
    for remat in ('none', 'pass', 'layer')
    for depth in (2, 10)
  }
  publish(
    dict(
      what='compile seconds (median) and temporary MiB of the gradient of the loss',
      model=FIELDS | dict(length=LENGTH, batch=BATCH, dtype='float32'),
      compile_seconds={f'D={layers} K=5': round(s, 2) for layers, s in compile_seconds.items()},
      compile_ratio_D12_to_D2=round(compile_seconds[12] / compile_seconds[2], 3),
      temporary_mib={name: round(mib, 1) for name, mib in memory.items()},
      memory_ratio_K10_to_K2_remat_layer=_ratio(memory, (10, 'layer'), (2, 'layer')),
      memory_ratio_layer_to_pass_K10=_ratio(memory, (10, 'layer'), (10, 'pass')),
    )
  )


def _ratio(memory: dict, one: tuple, other: tuple) -> float:
  name = 'D=5 K={} remat={}'.format
  return round(memory[name(*one)] / memory[name(*other)], 3)


if __name__ == '__main__':
  app.run(main)
