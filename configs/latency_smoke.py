"""Whether the latency bench works: two toy models, seconds; the numbers mean nothing.

  python -m experiments.latency --config=configs/latency_smoke.py
  python -m experiments.latency --config=configs/latency_smoke.py:peers    PyTorch's compilers too

What it measured is in no table.
"""

from ml_collections import ConfigDict

from configs import latency
from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('', 'peers')
PEERS = ('torch', 'torch_compiled', 'transformers_static')


def get_config(arguments: str = '') -> ConfigDict:
  preset = parse_arguments(arguments, peers=False)
  config = latency.base()
  small = dict(vocab_size=64, width=32, heads=2, rotary='standard')
  config.models = ConfigDict(
    dict(crt=small | dict(name='crt', layers=1), plain=small | dict(name='transformer', layers=2))
  )
  config.matches = ConfigDict(dict(crt='plain'))
  config.batches = (1, 2)
  config.contexts = (1, 40)
  config.dtypes = ('float32',)
  config.dispatches = (4, 0)
  config.tokens = 8
  config.rounds = 2
  config.warmup = 4
  config.peers = PEERS if preset.peers else ()
  config.bandwidth_megabytes = 1
  return config
