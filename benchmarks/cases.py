"""The training steps that are timed and compiled ahead: paper-size models in bfloat16."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from crt_jax.cli import config_files
from crt_jax.keys import random_key
from crt_jax.models import attention_choice
from crt_jax.models.base import Model
from crt_jax.models.traced_flops import traced_flops

# K is fixed, so that every step costs the same; without dropout, but for the CRT paper's recipe.
CASES = {
  'cart_d1024': ('configs/cart_d1024.py', {}),
  'dense_12l_d1024': ('configs/dense_12l_d1024.py', {}),
  'crt_d5_c1120': ('configs/crt_d5_c1120.py', {'model.depth_min': 0}),
  'crt_d5_c1120-dropout': (
    'configs/crt_d5_c1120.py',
    {'model.depth_min': 0, 'model.dropout': 0.2, 'model.attention_kernel': 'triton'},
  ),
  'transformer_n12': ('configs/transformer_n12.py:heads=16', {}),
}
COMMON = {'model.dropout': 0.0, 'model.dtype': 'bfloat16', 'train.telemetry_every': 0}
SMOKE = {
  'data.vocab_size': 128,
  'data.sequence_length': 16,
  'data.batch_size': 4,
  'model.width': 64,
  'model.dtype': 'float32',
  'model.attention_kernel': 'auto',
}


def config_of(
  case: str,
  smoke: bool = False,
  kernel: str = 'auto',
  batch_size: int = 0,
  fixed: dict | None = None,
) -> ConfigDict:
  """Returns the config of a case as it is measured, with `fixed` fields."""
  spec, changes = CASES[case]
  config = config_files.load(spec)
  changes = COMMON | changes | (SMOKE if smoke else {})
  if smoke:
    layers = 'prelude_layers' if config.model.name == 'cart' else 'layers'
    changes[f'model.{layers}'] = 2
    if config.model.get('heads'):
      changes['model.heads'] = 4
  if kernel != 'auto':
    changes['model.attention_kernel'] = kernel
  if batch_size:
    changes['data.batch_size'] = batch_size
  config.update_from_flattened_dict(changes | (fixed or {}))
  return config


def recomputed_flops(model: Model, config: ConfigDict) -> float:
  """Returns the FLOPs per token that the backward pass recomputes.

  They are layers and passes by `remat`, positions by `backward`, and the output layer if its loss
  is chunked. They are counted in the traced programs with and without recomputation, both with
  materialised attention, of which remat 'dots' keeps what a fused kernel returns.
  """
  rows = config.data.batch_size // config.train.accumulation
  shape = jax.ShapeDtypeStruct((rows, config.data.sequence_length), jnp.int32)

  def traced(**changes: Any):
    fields = dataclasses.replace(model.config, attention_kernel='xla', **changes)
    plain = type(model)(fields)
    params = jax.eval_shape(plain.init, random_key(0))
    return traced_flops(
      jax.grad(plain.loss, has_aux=True), params, dict(tokens=shape, targets=shape)
    )

  kernel, _ = attention_choice.running(model.config)
  own = dict(remat='none') if model.config.remat == 'dots' and kernel != 'xla' else {}
  stored = dict(backward='scan') if model.config.name == 'crt' else {}
  extra = traced(**own) - traced(remat='none', loss_chunk_mib=2**30, **stored)
  return extra / (rows * config.data.sequence_length)
