"""The training steps that are timed and compiled ahead: paper-size models, bfloat16, no dropout."""

from ml_collections import ConfigDict

from crt_jax.cli import config_files

# K is fixed, so that every step costs the same.
CASES = {
  'cart_d1024': ('configs/cart_d1024.py', {}),
  'dense_12l_d1024': ('configs/dense_12l_d1024.py', {}),
  'crt_d5_c1120': ('configs/crt_d5_c1120.py', {'model.depth_min': 0}),
  'transformer_n12': ('configs/transformer_n12.py:heads=16', {}),
}
COMMON = {'model.dropout': 0.0, 'model.dtype': 'bfloat16', 'train.telemetry_every': 0}
SMOKE = {
  'data.vocab_size': 128,
  'data.sequence_length': 16,
  'data.batch_size': 4,
  'model.width': 64,
  'model.dtype': 'float32',
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
  changes = COMMON | changes
  if smoke:
    changes = changes | SMOKE
    layers = 'prelude_layers' if config.model.name == 'cart' else 'layers'
    changes[f'model.{layers}'] = 2
    if config.model.get('heads'):
      changes['model.heads'] = 4
  changes['model.attention_kernel'] = kernel
  if batch_size:
    changes['data.batch_size'] = batch_size
  config.update_from_flattened_dict(changes | (fixed or {}))
  return config
