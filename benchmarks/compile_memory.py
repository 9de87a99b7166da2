"""How compile time and temporary memory of the loss's gradient grow with depth and with remat.

  python -m benchmarks.compile_memory --output=benchmarks/results/compile_memory.json

Compiles and never runs. Targets of a CRT: D=12 compiles in at most 1.3x the time of D=2; with
remat='layer' K=10 needs at most 1.2x the memory of K=2, and at D=5, K=10 at most 0.4x of
remat='pass'. Of a CART with remat='layer': each further loop adds at most three states [B, T, C],
and R=16 and P=8 compile in at most 1.3x the time of R=2 and P=2.
"""

import itertools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app

import crt_jax
from benchmarks.results import publish
from crt_jax.keys import random_key
from crt_jax.training.step import temporaries_of

FIELDS = dict(name='crt', vocab_size=512, width=256, heads=4, rotary='integer_reversed')
CART = dict(name='cart', vocab_size=512, width=256)
LENGTH, BATCH = 256, 16
STATE = BATCH * LENGTH * FIELDS['width'] * 4  # bytes of one state, float32
LOOPS = (2, 4, 8, 16)
REPEATS = 3


def compiled(fields: dict, **changes: Any) -> tuple[float, int]:
  """Returns the seconds to compile the loss's gradient, and its bytes of temporaries."""
  model = crt_jax.build(fields | changes)
  params = jax.eval_shape(model.init, random_key(0))
  rows = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
  gradient = jax.jit(jax.grad(model.loss, has_aux=True))
  lowered = gradient.lower(params, dict(tokens=rows, targets=rows))
  start = time.perf_counter()
  executable = lowered.compile()
  seconds = time.perf_counter() - start
  return seconds, temporaries_of(executable)


def main(argv: list[str]) -> None:
  del argv
  compiled(FIELDS, layers=1, depth=2)  # the first compilation of a process loads the compiler
  shallow, deep = (seconds(FIELDS, layers=layers, depth=5) for layers in (2, 12))
  few, many = (
    seconds(CART, prelude_layers=prelude, loops=loops) for prelude, loops in ((2, 2), (8, 16))
  )
  memory = {
    f'D=5 K={depth} remat={remat}': compiled(FIELDS, layers=5, depth=depth, remat=remat)[1] / 2**20
    for remat in ('none', 'pass', 'layer')
    for depth in (2, 10)
  }
  publish(
    dict(
      what='compile seconds (median) and temporary MiB of the gradient of the loss',
      model=FIELDS | dict(length=LENGTH, batch=BATCH, dtype='float32'),
      compile_seconds={'D=2 K=5': round(shallow, 2), 'D=12 K=5': round(deep, 2)},
      compile_ratio_D12_to_D2=round(deep / shallow, 3),
      temporary_mib={name: round(mib, 1) for name, mib in memory.items()},
      memory_ratio_K10_to_K2_remat_layer=_ratio(memory, (10, 'layer'), (2, 'layer')),
      memory_ratio_layer_to_pass_K10=_ratio(memory, (10, 'layer'), (10, 'pass')),
      cart=dict(
        model=CART | dict(prelude_layers=2, length=LENGTH, batch=BATCH, dtype='float32'),
        compile_seconds={'P=2 R=2': round(few, 2), 'P=8 R=16': round(many, 2)},
        compile_ratio=round(many / few, 3),
        state_mib=STATE / 2**20,
        **{f'remat_{remat}': loop_memory(remat) for remat in ('none', 'layer')},
      ),
    )
  )


def seconds(fields: dict, **changes: Any) -> float:
  """Returns the median of compiling several times."""
  return statistics.median(compiled(fields, **changes)[0] for _ in range(REPEATS))


def loop_memory(remat: str) -> dict:
  """Returns a CART's temporaries by R, and the most states [B, T, C] that one more loop adds."""
  size = {R: compiled(CART, prelude_layers=2, loops=R, remat=remat)[1] for R in LOOPS}
  added = [(size[b] - size[a]) / (b - a) / STATE for a, b in itertools.pairwise(LOOPS)]
  return dict(
    temporary_mib={f'R={R}': round(found / 2**20, 1) for R, found in size.items()},
    states_added_per_loop=round(max(added), 3),
  )


def _ratio(memory: dict, one: tuple, other: tuple) -> float:
  name = 'D=5 K={} remat={}'.format
  return round(memory[name(*one)] / memory[name(*other)], 3)


if __name__ == '__main__':
  app.run(main)
