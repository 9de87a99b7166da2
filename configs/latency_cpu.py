"""How fast models decode, on a CPU of a few cores, in float32: minutes, plain PyTorch beside it.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \\
    python -m experiments.latency --config=configs/latency_cpu.py

Huge pages (glibc only) let weights be read up to 1.5 times as fast, in PyTorch too. Without
PyTorch: --config.peers='()'. One model: --config.only=crt_d1_c2048. Results measured so far are in
docs/latency.md.
"""

from ml_collections import ConfigDict

from configs import latency


def get_config() -> ConfigDict:
  config = latency.base()
  config.batches = (1, 2, 8)
  config.contexts = (1, 1024)
  config.dtypes = ('float32',)
  config.dispatches = (16, 1, 0)
  config.tokens = 32
  config.warmup = 16
  return config
