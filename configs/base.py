"""Shared parts of configs: the papers' models, and the CRT paper's recipe (crt.md, 7 and 8).

This is not an experiment itself. A config is complete, since crt_jax.schema lists every field that
the code reads (`--help` shows them), so a misspelt one is refused; a variant is a small function of
these.
"""

from typing import Any, NamedTuple

import ml_collections
from ml_collections import ConfigDict

from crt_jax import schema


class Run(NamedTuple):
  """One run of a sweep (configs/sweeps)."""

  name: str  # of its folder
  config: str  # what to give as --config
  changes: dict[str, Any] = {}  # dotted fields that differ from that file
  after: str = ''  # the run of this sweep whose parameters it begins with; it waits for that one


def crt_model(**changes: Any) -> dict:
  """Returns all fields of a CRT as the paper trains it, with 1 layer of width 256."""
  recipe = dict(
    layers=1,
    width=256,
    heads=16,
    depth_min=2,
    convergence_weight=0.1,
    rotary='integer_reversed',
    dropout=0.2,
  )
  return schema.crt_model(**recipe | changes)


def transformer_model(**changes: Any) -> dict:
  """Returns all fields of the CRT paper's baseline, with 6 layers of width 256."""
  recipe = dict(layers=6, width=256, heads=16, rotary='integer_reversed', dropout=0.2)
  return schema.transformer_model(**recipe | changes)


def cart_model(**changes: Any) -> dict:
  """Returns all fields of a CART of width 256, with 6 layers before its loops."""
  return schema.cart_model(**dict(width=256, prelude_layers=6) | changes)


def paper(
  model: dict, sequence_length: int = 256, batch_size: int = 64, steps: int = 100_000
) -> ConfigDict:
  """Returns the CRT paper's recipe on OpenWebText around a model (crt.md, section 8).

  The text is not in the package, but where
    python -m experiments.fetch --dataset=openwebtext --output=corpora
  puts it, or elsewhere: --config.data.files='/data/openwebtext/*.jsonl.gz'. A BPE of 32 000 tokens
  is trained on its first 100 000 documents; they are joined without separators and cut 90/10.
  """
  config = schema.experiment(model)
  config.data.update(
    corpus='files',
    files='corpora/openwebtext/train*.jsonl*',
    tokenizer='bpe',
    vocab_size=32_000,
    bpe_recipe='crt',
    bpe_documents=100_000,
    split='contiguous',
    sampling='random_offsets',
    sequence_length=sequence_length,
    batch_size=batch_size,
  )
  config.model.dtype = 'bfloat16'
  config.model.remat = 'layer'  # memory that hardly grows with K
  config.train.update(steps=steps, log_every=100, eval_every=5000, checkpoint_every=5000)
  config.eval.whole = False  # 0.9 G tokens; the paper reports the sampled protocol
  return config


def crt_paper(
  layers: int, width: int, heads: int = 16, depth: int = 5, depth_min: int = 2, **sizes: Any
) -> ConfigDict:
  """Returns the paper's recipe for a CRT, evaluated at K in {1, 2, 3, 5, K, 2K} and exactly."""
  model = crt_model(layers=layers, width=width, heads=heads, depth=depth, depth_min=depth_min)
  config = paper(model, **sizes)
  config.eval.update(depths=evaluation_depths(depth), jacobian_iterations=40)
  return config


def transformer_paper(
  layers: int, width: int, heads: int = 16, **sizes: Any
) -> ml_collections.ConfigDict:
  """Returns the paper's recipe for a transformer."""
  return paper(transformer_model(layers=layers, width=width, heads=heads), **sizes)


def evaluation_depths(depth: int) -> tuple[int, ...]:
  """Returns the K values that the paper reports for a model trained with K = depth."""
  return tuple(sorted({1, 2, 3, 5, depth, 2 * depth}))


def study(
  config: ConfigDict, variants: dict, figure: str, seeds: tuple[int, ...] = (42, 137, 271)
) -> ConfigDict:
  """Adds the section that experiments.study reads: variants, as config changes, and seeds.

  Args:
    variants: name -> nested dict of the fields that differ.
    figure: which figure of experiments/study/figures.py shows the result.
  """
  config.study = ConfigDict(dict(seeds=seeds, figure=figure))
  config.study.variants = ConfigDict({name.replace('.', '_'): v for name, v in variants.items()})
  return config
