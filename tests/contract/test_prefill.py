"""Reading prompts: whatever the number of rows, their lengths, the method and the room that is left,
padding leaves no trace."""

import functools

import jax
import numpy as np
import pytest

from tests.contract.models import LENGTH, model_of, params_of, tokens_of
from tests.contract.test_contract import TOLERANCE

ROWS = (1, 2, 3)
each_number_of_rows = pytest.mark.parametrize('rows', ROWS)


@functools.cache
def prepared(name, rows):
  """Model, parameters, tokens of so many rows and the exact logits of their sequential form."""
  model = model_of(name)
  params, tokens = params_of(model), tokens_of(model, batch=rows)
  return model, params, tokens, model.sequential(params, tokens)


@each_number_of_rows
@pytest.mark.parametrize(
  'name, method',
  [
    *[('crt', 'sequential'), ('crt', 'chunked'), ('crt', 'parallel')],
    *[('cart', 'sequential'), ('cart', 'parallel'), ('roformer', 'chunked')],
    *[('roformer', 'parallel'), ('crt_sa', 'chunked'), ('crt_windowed', 'chunked')],
  ],
)
def test_padding_is_never_written(name, method, rows):
  """Into a state that the longest prompt fills to the last slot, in chunks that do not divide it."""
  model = model_of(name)
  params, tokens = params_of(model), tokens_of(model, batch=rows)
  lengths = np.array([LENGTH, 3, 0][:rows])
  prefill = functools.partial(model.prefill, method=method, chunk=4)
  state, logits = prefill(params, model.decode_state(rows, LENGTH), tokens, lengths)
  roomy, expected = prefill(params, model.decode_state(rows, 16), tokens, lengths)
  np.testing.assert_allclose(logits[:2], expected[:2], **TOLERANCE)

  def compare(found_NxBxHxSxA, expected_NxBxHxSxA):
    for row, length in enumerate(lengths):
      found, expected = found_NxBxHxSxA[:, row], expected_NxBxHxSxA[:, row, :, :LENGTH]
      np.testing.assert_allclose(found[:, :, :length], expected[:, :, :length], **TOLERANCE)
      np.testing.assert_array_equal(found[:, :, length:], 0)

  jax.tree.map(compare, state.caches, roomy.caches)
