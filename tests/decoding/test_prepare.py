"""Prepared parameters decode the same text: one array per layer, cast once."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax.decoding import prepare
from crt_jax.decoding.prepare import empty_state
from tests.close import FLOAT32, assert_close
from tests.contract.models import BATCH, CONFIGS, LENGTH, model_of, params_of, tokens_of

KEPT = ('embedding', 'loop_code')  # in float32: no token is multiplied by them


def logits_of(model, params, state):
  """Logits of every position but the first two, which are prefilled; one step at a time."""
  tokens = tokens_of(model)
  state, logits = model.prefill(params, state, tokens[:, :2])
  step, found = jax.jit(model.step), [logits]
  for t in range(2, LENGTH):
    state, logits = step(params, state, tokens[:, t])
    found.append(logits)
  return np.stack(found)


@pytest.mark.parametrize('name', CONFIGS)
def test_separate_layers_compute_the_same(name):
  model = model_of(name)
  params = params_of(model)
  expected = logits_of(model, params, model.decode_state(BATCH, LENGTH))
  same, prepared = prepare(model, params)
  assert same == model
  state = empty_state(model, prepared, BATCH, LENGTH)
  assert_close(logits_of(model, prepared, state), expected, FLOAT32)
  # Nothing is stacked any more where a scan would copy it.
  stacks = [functools.reduce(operator.getitem, path, prepared) for path in model.stacked]
  assert [len(layers) for layers in stacks] == [2 - (name in ('crt_sa', 'odd_state'))]


@pytest.mark.parametrize('name', ('crt', 'cart', 'roformer'))
def test_casting_once_is_casting_at_each_use(name):
  """An embedding that is no output layer stays in float32, as a token reads one row of it, and so
  does the loop code, of which it reads none."""
  model, half = model_of(name), model_of(name, dtype='bfloat16')
  params = params_of(model)
  prepared_model, prepared = prepare(model, params, 'bfloat16')
  assert prepared_model == half
  weights = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(prepared)
    if path[-1].key == 'weight' and leaf.ndim > 1 and path[0].key not in KEPT
  ]
  assert {leaf.dtype for leaf in weights} == {jnp.dtype('bfloat16')}
  found = logits_of(half, prepared, empty_state(half, prepared, BATCH, LENGTH))
  if 'output' not in params:  # the table is the output layer too, so its embeddings are rounded
    rounded = jax.tree.map(lambda a: a.astype('bfloat16').astype('float32'), params['embedding'])
    params = params | {'embedding': rounded}
  expected = logits_of(half, params, half.decode_state(BATCH, LENGTH))
  assert found.dtype == np.float32
  assert_close(found, expected, 1e-5)


def test_what_is_not_changed_is_not_copied():
  model = model_of('crt')
  params = params_of(model)
  _, prepared = prepare(model, params)
  assert prepared['embedding']['weight'] is params['embedding']['weight']
  assert prepared['output']['weight'] is params['output']['weight']


def test_a_model_settled_for_a_gpu_decodes_in_any_dtype():
  """Its fused kernel takes 16 bits alone, and no kernel runs over a cache."""
  fused = model_of('crt', dtype='bfloat16', attention_kernel='cudnn')
  found, _ = prepare(fused, params_of(fused), 'float32')
  assert found == model_of('crt')


def test_refused():
  model = model_of('crt')
  with pytest.raises(ValueError, match="dtype='bfloat' must be one of .*did you mean 'bfloat16'"):
    prepare(model, params_of(model), 'bfloat')
