"""What a config may say: one dataclass per section, from which defaults, checks and help follow.

from crt_jax import schema

def get_config():
  config = schema.experiment(schema.crt_model(layers=2, width=64, heads=2, rotary='standard'))
  config.train.steps = 100
  return config
"""

from crt_jax.schema.cart import CARTConfig
from crt_jax.schema.crt import CRTConfig
from crt_jax.schema.data import DataConfig, SourceConfig
from crt_jax.schema.evaluation import EvalConfig, SampleConfig
from crt_jax.schema.experiment import (
  ABOUT,
  MODELS,
  SECTIONS,
  AboutConfig,
  cart_model,
  check,
  completed,
  crt_model,
  default,
  experiment,
  flat,
  meaning,
  source,
  stand_ins,
  transformer_model,
)
from crt_jax.schema.fields import Section, complete, field, resolve
from crt_jax.schema.layers import LayerFields, TransformerConfig
from crt_jax.schema.model import ModelConfig
from crt_jax.schema.training import MeshConfig, OptimizerConfig, TrainConfig

__all__ = [
  'ABOUT',
  'AboutConfig',
  'CARTConfig',
  'CRTConfig',
  'DataConfig',
  'EvalConfig',
  'LayerFields',
  'MODELS',
  'MeshConfig',
  'ModelConfig',
  'OptimizerConfig',
  'SECTIONS',
  'SampleConfig',
  'Section',
  'SourceConfig',
  'TrainConfig',
  'TransformerConfig',
  'cart_model',
  'check',
  'complete',
  'completed',
  'crt_model',
  'default',
  'experiment',
  'field',
  'flat',
  'meaning',
  'resolve',
  'source',
  'stand_ins',
  'transformer_model',
]
