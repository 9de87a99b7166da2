"""Where the CPU time of a training step goes: one traced step of train_cpu's models, by part.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.profile_cpu --model=crt \
    --output=benchmarks/results/profile_cpu.json
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.profile_cpu --model=cart \
    --output=benchmarks/results/profile_cart_cpu.json

XLA names each operation of the compiled step after the code that it came from. The time of an
operation, without what it waits for inside, is added to the first part below whose pattern fits.
"""

from absl import app

from benchmarks import profile_parts
from benchmarks.results import publish
from benchmarks.train_cpu import CASES, MODEL, jax_step


def main(argv: list[str]) -> None:
  del argv
  case = CASES[MODEL.value]
  step, text = jax_step(case)
  step()
  publish(
    dict(
      what='share of the time of one training step, by part',
      model=case.described(),
      share=profile_parts.profile(step, text),
    )
  )


if __name__ == '__main__':
  app.run(main)
