"""A complete config: its sections, their defaults, and its checks."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from crt_jax.schema import fields
from crt_jax.schema.cart import CART_HEAD_WIDTH, CARTConfig
from crt_jax.schema.crt import CRTConfig
from crt_jax.schema.data import EMBEDDED, MIXTURE, DataConfig, SourceConfig
from crt_jax.schema.evaluation import EvalConfig, SampleConfig
from crt_jax.schema.fields import SEEDS, Section, Values, complete, field, near, values_of
from crt_jax.schema.layers import TransformerConfig
from crt_jax.schema.model import ModelConfig
from crt_jax.schema.training import MeshConfig, OptimizerConfig, TrainConfig

ABOUT = 'about'


@dataclasses.dataclass(frozen=True, kw_only=True)
class AboutConfig(Section):
  """Facts about an experiment for people; a run does not depend on them."""

  section: ClassVar[str] = ABOUT

  stands_in_for: str = field('', 'the intended texts of a config on embedded ones; a warning')
  first_look: str = field('', '--config of a short version, suggested if the run would take days')


MODELS: dict[str, type[ModelConfig]] = {
  'transformer': TransformerConfig,
  'crt': CRTConfig,
  'cart': CARTConfig,
}
SECTIONS: dict[str, type[Section]] = {
  'data': DataConfig,
  'optimizer': OptimizerConfig,
  'train': TrainConfig,
  'eval': EvalConfig,
  'mesh': MeshConfig,
  'sample': SampleConfig,
  ABOUT: AboutConfig,
}
# Only experiments.study and experiments.bptt_study read this section.
STUDY = 'study'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(Section):
  """Fields outside any section."""

  section: ClassVar[str] = ''

  seed: int = field(
    42, 'seed of parameters, data order, dropout and drawn depths', least=0, most=SEEDS
  )


def crt_model(**changes: Any) -> dict[str, Any]:
  """Returns all fields of a CRT; `experiment` adds the vocabulary of the data."""
  return complete(CRTConfig, {'name': 'crt', **changes})


def cart_model(**changes: Any) -> dict[str, Any]:
  """Returns all fields of a CART, as `crt_model` does of a CRT."""
  return complete(CARTConfig, {'name': 'cart', 'head_width': CART_HEAD_WIDTH, **changes})


def transformer_model(**changes: Any) -> dict[str, Any]:
  """Returns all fields of a transformer, as `crt_model` does of a CRT."""
  return complete(TransformerConfig, {'name': 'transformer', **changes})


def source(**changes: Any) -> ConfigDict:
  """Returns all fields of one corpus of a mixture."""
  return ConfigDict(complete(SourceConfig, changes))


def experiment(model: Mapping[str, Any]) -> ConfigDict:
  """Returns a complete config around a model, which trains on the embedded novel, as bytes.

  It has every field that the code reads, so a misspelt field is refused.

  Args:
    model: from `crt_model`, `cart_model` or `transformer_model`, or the fields of a registered one.
  """
  config = ConfigDict(complete(Whole, {}))
  for name, cls in SECTIONS.items():
    config[name] = ConfigDict(complete(cls, {}))
  config.model = ConfigDict({**model, 'vocab_size': config.data.get_ref('vocab_size')})
  config.eval.sequential = model['name'] == 'crt'
  return config


def check(config: ConfigDict) -> ConfigDict:
  """Returns the locked config with every field in its type.

  The section of the model is checked later, where the model is built.

  Raises:
    ValueError: a value that no run could mean; one line that names the field and the fix.
  """
  known = {'seed', *SECTIONS, ModelConfig.section, STUDY}
  for name in config:
    if name not in known:
      raise ValueError(f'config.{name} is no section{near(name, known)}')
  done = config.copy_and_resolve_references()
  done.seed = fields.resolve(Whole, {'seed': config.get('seed', None)}).seed
  for name in (ModelConfig.section, *SECTIONS):
    given = done.get(name, None)
    if given is None or not hasattr(given, 'keys'):
      raise ValueError(
        f'config.{name}={fields.shown(given)} must be {fields.KINDS[dict]}; schema.experiment() '
        'has it'
      )
    if name in SECTIONS:
      done[name] = ConfigDict(dataclasses.asdict(fields.resolve(SECTIONS[name], given)))
  return done.lock()


def stand_ins(config: ConfigDict) -> list[str]:
  """Returns the embedded corpora on which a config trains in place of the intended ones."""
  if not config.about.stands_in_for:
    return []
  mixed = config.data.corpus == MIXTURE
  used = [s.corpus for s in config.data.sources.values()] if mixed else [config.data.corpus]
  return [corpus for corpus in used if corpus in EMBEDDED]


def completed(saved: Mapping[str, Any]) -> ConfigDict:
  """Returns the locked config of a saved run; a field added since then has its default."""
  config = ConfigDict(dict(saved))
  for name, cls in SECTIONS.items():
    given = config.get(name, None)
    config[name] = ConfigDict(complete(cls, {}) | ({} if given is None else given.to_dict()))
  return config.lock()


def section_of(name: str, model: str) -> tuple[type[Section] | None, str]:
  """Returns the section of a dotted field, None if there is none, and the field's own name.

  Args:
    model: the model's name, on which the fields of 'model' depend.
  """
  section, _, own = name.rpartition('.')
  sections = {**SECTIONS, '': Whole, ModelConfig.section: MODELS.get(model, ModelConfig)}
  cls = SourceConfig if section.startswith('data.sources.') else sections.get(section)
  return (cls if cls and own in cls.__dataclass_fields__ else None), own


def meaning(name: str, model: str) -> Values:
  """Returns what a dotted field accepts and means; an empty meaning for a field of no section."""
  cls, own = section_of(name, model)
  return values_of(cls, own) if cls else Values('')


def default(name: str, model: str) -> Any:
  """Returns the default of a dotted field as JSON; None if it has none."""
  cls, own = section_of(name, model)
  value = complete(cls, {}).get(own) if cls else None
  return list(value) if isinstance(value, tuple) else value


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns nested mappings as one mapping with dotted names; an empty mapping is a value."""
  found = {}
  for name, value in config.items():
    members = flat(value, f'{prefix}{name}.') if hasattr(value, 'keys') else {}
    found |= members or {f'{prefix}{name}': value}
  return found
