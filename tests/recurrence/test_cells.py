"""The cells of docs/bptt.md, through every driver, backward pass and estimator in turn."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

import crt_jax
from crt_jax.models.crt import CRT
from tests.close import FLOAT64, assert_close
from tests.recurrence.scaled import BASE, largest_gap, loss_and_gradient, params_of, tokens_of

PAGE = (Path(__file__).parents[2] / 'docs' / 'bptt.md').read_text('utf-8')
LENGTH = 4
IN_SEQUENCE = dict(driver='sequential')
UNROLLED = dict(driver='unroll', depth=LENGTH + 1, convergence_weight=0.0)
EXACT = {
  'unroll': UNROLLED,
  'chunked': dict(driver='chunked', chunk=2, depth=3),
  'segments': IN_SEQUENCE | dict(backward='segments'),
  'scan': IN_SEQUENCE | dict(backward='scan'),
  'truncated': IN_SEQUENCE | dict(gradient='truncated', gradient_reach=LENGTH),
  'last_passes': UNROLLED | dict(gradient='last_passes', gradient_reach=LENGTH + 1),
  'implicit': UNROLLED | dict(gradient='implicit', gradient_reach=LENGTH),
}
pytestmark = pytest.mark.usefixtures('float64')


@functools.cache
def cells():
  """What the page's code defines."""
  [text] = re.findall(r'```python\n# cells\n(.*?)```', PAGE, re.DOTALL)
  found = {}
  exec(text, found)
  return found


def model_of(cell, **changes):
  return CRT(crt_jax.build(BASE | changes).config, make_block=cells()[cell])


@functools.cache
def reference(cell):
  """Parameters, tokens, loss and gradient by position, backward by 'replay'."""
  model = model_of(cell, **IN_SEQUENCE)
  params, tokens = params_of(model), tokens_of(length=LENGTH)
  return params, tokens, loss_and_gradient(model, params, tokens)


@pytest.mark.parametrize('how', EXACT)
@pytest.mark.parametrize('cell', ['LSTM', pytest.param('GatedMean', marks=pytest.mark.slow)])
def test_a_cell_has_one_gradient(cell, how):
  params, tokens, expected = reference(cell)
  found = loss_and_gradient(model_of(cell, **EXACT[how]), params, tokens)
  assert largest_gap(found, expected) < 1e-10


@pytest.mark.parametrize('cell', ['LSTM', 'GatedMean'])
def test_a_cell_decodes_what_it_was_trained_for(cell):
  params, tokens, _ = reference(cell)
  model = model_of(cell)
  expected = model.apply(params, tokens, depth=LENGTH + 1).logits_BxTxV
  assert_close(model.sequential(params, tokens), expected, FLOAT64)


@pytest.mark.parametrize('cell', ['LSTM', 'GatedMean'])
def test_the_state_is_carried(cell):
  params, _, _ = reference(cell)
  block = cells()[cell](model_of(cell).config).block(params['layers'])
  x_BxTxC = np.random.default_rng(0).standard_normal((2, 3, BASE['width']))
  other_BxTxC = x_BxTxC.copy()
  other_BxTxC[:, 0] += 1.0
  assert np.abs(block(x_BxTxC)[0] - block(other_BxTxC)[0])[:, -1].max() > 1e-3
