"""What `import crt_jax` hands out."""

import numpy as np
import pytest

import crt_jax
from crt_jax import schema
from crt_jax.models import registry
from crt_jax.models.transformer import Transformer
from tests.training import tiny


def test_every_public_name_is_there():
  assert {name: getattr(crt_jax, name) for name in crt_jax.__all__}
  with pytest.raises(AttributeError, match='no attribute'):
    crt_jax.builds  # noqa: B018


def test_a_run_is_loaded_and_writes_text(tmp_path):
  tiny.train(tiny.tiny_config(**{**tiny.PLAIN, 'train.steps': 2}), tmp_path / 'run')
  trained = crt_jax.load(tmp_path / 'run')
  assert trained.step == 2 and trained.config.train.steps == 2
  prompt = trained.tokenizer.encode('Call')
  found = crt_jax.generate(trained.model, trained.params, [prompt], 3, context=8)
  assert np.asarray(found).shape == (1, 3)


def test_what_is_no_run_is_named(tmp_path):
  with pytest.raises(ValueError, match=str(tmp_path)):
    crt_jax.load(tmp_path)


def test_a_registered_model_is_built_by_its_name(monkeypatch):
  for table in (registry.MODELS, schema.MODELS):  # gone after the test
    monkeypatch.setitem(table, 'mine', None)
    del table['mine']

  class Mine(Transformer):
    pass

  crt_jax.register('mine', Mine)
  crt_jax.register('mine', Mine)
  fields = dict(name='mine', vocab_size=8, width=8, heads=2, layers=1, rotary='integer')
  assert type(crt_jax.build(fields)) is Mine
  assert schema.meaning('model.layers', 'mine').meaning == 'layers, N'
  with pytest.raises(ValueError, match="model.name='crt' is taken"):
    crt_jax.register('crt', Mine)
