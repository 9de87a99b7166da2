"""How fast models decode, on a GPU: every axis varied alone, plain PyTorch beside it.

  python -m experiments.latency --config=configs/latency.py
  python -m experiments.latency --config=configs/latency.py:paper    the CRT paper's procedure
  python -m experiments.latency --config=configs/latency.py:pallas   model.decode_kernel beside XLA

Each axis is varied from the first value of every other. Your own models are rows too:
  --config.extra=configs/crt_341m.py:D=5,configs/mine.py

The CRT paper measured D=1 C=2048 at 1.09 ms per token and N=6 C=1088 at 2.85 (crt.md, 10.10: one
A100, batch 1, bfloat16, eager PyTorch). Not run here yet on a GPU; see latency_cpu for a CPU.
"""

from ml_collections import ConfigDict

from crt_jax.cli.config_files import parse_arguments

ARGUMENTS = ('', 'paper', 'pallas')


def get_config(arguments: str = '') -> ConfigDict:
  preset = parse_arguments(arguments, paper=False, pallas=False)
  config = base()
  if preset.paper:
    only(
      config, 'crt_d1_c2048', 'transformer_n6', 'crt_d5_c1120', 'crt_d6_c1024', 'transformer_n12'
    )
    config.dtypes = ('bfloat16',)
    config.contexts = (1,)
    config.batches = (1,)
    config.dispatches = (100, 0)  # chunks of 100 tokens, and a call per token as in eager code
    config.tokens = 10_000
    config.rounds = 1
    config.warmup = 8
    config.peers = ('torch',)
  if preset.pallas:
    config.models.update(with_kernels())
    only(config, 'crt_d1_c2048', 'crt_d1_c2048_pallas')
    config.dtypes = ('bfloat16',)
    config.contexts = (1, 1024)
    config.batches = (1,)
    config.dispatches = (64,)
    config.peers = ()
  return config


def base() -> ConfigDict:
  """Returns all fields: the timed models, and what each is compared with."""
  config = ConfigDict()
  config.models = ConfigDict(models())
  config.matches = ConfigDict(  # model -> the transformer of its budget
    dict(
      crt_d1_c2048='transformer_n6',
      crt_d5_c1120='transformer_n12',
      crt_d6_c1024='transformer_n12',
      cart_d1024='dense_12',
    )
  )
  config.only = ''  # names of models, comma-separated; '' = all
  config.extra = ''  # config files whose models are timed too, comma-separated
  config.batches = (1, 2, 4, 8, 16, 64)
  config.contexts = (1, 1024, 4096, 10_000)  # positions in the caches before the first timed token
  config.dtypes = ('bfloat16', 'float32')
  config.dispatches = (64, 16, 1, 0)  # tokens per compiled call; 0 = a Python loop over steps
  config.tokens = 256  # timed in each round, per row of the batch
  config.rounds = 3
  config.warmup = 64  # tokens before the first timed one
  config.prefill = 'chunked'  # for the time to the first token: passes over 64 positions at a time
  config.temperature = 1.0  # 0 = the likeliest token
  config.top_k = 0  # 0 = all
  config.peers = ('torch',)  # of rows.PEERS; need `pip install -e .[peers]`; () = none
  config.bandwidth_megabytes = 512  # of the weight whose reading measures the machine
  return config


def models() -> dict:
  """Returns model fields by name (crt.md 7 and 10.10; cart.md 3.2)."""
  crt = dict(name='crt', vocab_size=32_000, heads=16, rotary='integer_reversed')
  transformer = crt | dict(name='transformer')
  cart = dict(vocab_size=32_000, width=1024)
  return dict(
    crt_d1_c2048=crt | dict(layers=1, width=2048),
    transformer_n6=transformer | dict(layers=6, width=1088),
    crt_d5_c1120=crt | dict(layers=5, width=1120),
    crt_d6_c1024=crt | dict(layers=6, width=1024),
    transformer_n12=transformer | dict(layers=12, width=768),
    cart_d1024=cart | dict(name='cart', prelude_layers=6, loops=6),
    dense_7=cart | dict(name='transformer', style='cart_dense', layers=7),
    dense_12=cart | dict(name='transformer', style='cart_dense', layers=12),
  )


def with_kernels() -> dict:
  """Returns the same where decoding has kernels of its own (model.decode_kernel), for batch 1."""
  return {
    f'{name}_pallas': fields | dict(decode_kernel='pallas')
    for name, fields in models().items()
    if fields['name'] != 'cart'
  }


def only(config: ConfigDict, *names: str) -> None:
  """Keeps these models, and the comparisons among them."""
  config.models = ConfigDict({name: config.models[name] for name in names})
  config.matches = ConfigDict(
    {name: other for name, other in config.matches.items() if {name, other} <= set(names)}
  )
