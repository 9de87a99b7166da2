"""A CRT on the State of the Union addresses. Reached: not measured yet.

  python -m experiments.main --config=configs/crt_sotu.py
"""
from configs import base
def get_config():
  config = base.base(base.crt_model(layers=2, width=256, heads=8))
  config.data.update(corpus='sotu', tokenizer='bpe', vocab_size=8192)
  return config
