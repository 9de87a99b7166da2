"""Every correction of the CRT and every switch of the CART equals an independent float64 form."""

import functools

import jax
import numpy as np
import pytest

import crt_jax
from crt_jax.convert.reference import export_arrays, import_params
from crt_jax.layers.rotary import KINDS
from crt_jax.models.corrections import VARIANTS
from tests import close
from tests.models import numpy_reference

BATCH, LENGTH, VOCAB, DEPTH = 2, 4, 13, 3
FAST_GRADIENTS = ('concat', 'sa', 'tied_pure')
CART = dict(
  name='cart',
  vocab_size=VOCAB,
  width=16,
  head_width=8,
  prelude_layers=2,
  loops=3,
  loop_code_width=8,
)
FAST_CART = dict(
  base={},
  per_loop_anchor_norm=dict(anchor='per_loop', anchor_norm=True),
  self_unshared=dict(core='self', share_core=False),
  no_core_residual=dict(gate=False, core_residual=False),
)
SLOW_CART = dict(
  per_loop=dict(anchor='per_loop'),
  unshared=dict(share_core=False),
  self=dict(core='self'),
  anchor_norm=dict(anchor_norm=True),
  full_rank=dict(latent_ratio=0),
  history_2=dict(history=2, loop_code_width=8, latent_ratio=2),
  loops_18=dict(loops=18),
  no_blend=dict(blend=False),
  no_gate=dict(gate=False),
  no_loop_code=dict(loop_code=False),
)

pytestmark = pytest.mark.usefixtures('float64')


def crt_config(correction, **changes):
  """A CRT; rotary kind and window go round, so that every kind and both windows occur."""
  index = list(VARIANTS).index(correction)
  fields = dict(vocab_size=VOCAB, width=8, heads=2, layers=2, correction=correction)
  rotary, window = KINDS[index % 3], (0, 3)[index % 2]
  return dict(name='crt', rotary=rotary, window=window, **fields) | changes


def drawn(config):
  """The model, its parameters as NumPy arrays and as its own, and a batch with one target off."""
  generator = np.random.default_rng(0)
  draw = numpy_reference.draw_crt if config['name'] == 'crt' else numpy_reference.draw_cart
  arrays = draw(config, generator)
  params = import_params(config, arrays)
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype('float64')}
  tokens, targets = generator.integers(0, VOCAB, (2, BATCH, LENGTH))
  targets[0, 1] = -1
  return crt_jax.build(config), arrays, params, dict(tokens=tokens, targets=targets)


assert_close = functools.partial(close.assert_close, tolerance=close.FLOAT64)


def crt_logits(model, params, tokens):
  return jax.jit(functools.partial(model.apply, depth=DEPTH))(params, tokens).logits_BxTxV


@pytest.mark.parametrize('correction', VARIANTS)
def test_parallel_passes_and_the_exact_recurrence(correction):
  config = crt_config(correction)
  model, arrays, params, batch = drawn(config)
  tokens = batch['tokens']
  logits = crt_logits(model, params, tokens)
  assert_close(logits, numpy_reference.crt(arrays, tokens, config, DEPTH))
  exact = numpy_reference.crt_sequential(arrays, tokens, config)
  assert_close(model.sequential(params, tokens), exact)
  # The reference agrees with itself: T + 1 passes are exact (crt.md 4).
  assert_close(numpy_reference.crt(arrays, tokens, config, LENGTH + 1), exact)


def test_the_rotation_covers_every_rotary_kind_with_and_without_a_window():
  configs = [crt_config(correction) for correction in VARIANTS]
  assert {(c['rotary'], c['window']) for c in configs} == {(k, w) for k in KINDS for w in (0, 3)}


@pytest.mark.parametrize(
  'changes', (dict(cumulative=True), dict(self_inclusive=True), dict(start='corrected')), ids=str
)
@pytest.mark.parametrize('correction', ('add', 'delta_ffn'))
def test_switches_of_the_passes(correction, changes):
  config = crt_config(correction, **changes)
  model, arrays, params, batch = drawn(config)
  expected = numpy_reference.crt(arrays, batch['tokens'], config, DEPTH)
  assert_close(crt_logits(model, params, batch['tokens']), expected)
  without = numpy_reference.crt(arrays, batch['tokens'], crt_config(correction), DEPTH)
  # Where no network reads the embedding, a summary of zero corrects nothing.
  is_idle = correction == 'delta_ffn' and 'start' in changes
  assert (np.abs(expected - without).max() > 1e-2) != is_idle


@pytest.mark.parametrize(
  'correction, weight',
  [('add', 0.7)]
  + [pytest.param(c, 0.0, marks=[] if c in FAST_GRADIENTS else pytest.mark.slow) for c in VARIANTS],
)
def test_loss_and_its_gradient_along_two_directions(correction, weight):
  config = crt_config(correction, convergence_weight=weight)
  model, arrays, params, batch = drawn(config)
  loss = jax.value_and_grad(functools.partial(model.loss, depth=DEPTH), has_aux=True)
  (total, _), gradient = jax.jit(loss)(params, batch)
  tokens, targets = batch['tokens'], batch['targets']
  _, frozen, _ = numpy_reference.crt_passes(arrays, tokens, config, DEPTH)

  def expected(arrays):
    return numpy_reference.crt_loss(arrays, tokens, targets, config, DEPTH, frozen)

  assert_close(total, expected(arrays))
  gradient = export_arrays(config, gradient)
  assert gradient.keys() == arrays.keys()
  generator, step = np.random.default_rng(1), 3e-5
  for _ in range(2):
    direction = {name: generator.standard_normal(a.shape) for name, a in arrays.items()}

    def along(distance, direction=direction):
      return expected({name: a + distance * direction[name] for name, a in arrays.items()})

    # Fourth order: with two points alone the curvature of some of these losses shows.
    near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
    slope = sum(np.sum(gradient[name] * direction[name]) for name in arrays)
    assert_close(slope, (8 * near - far) / (12 * step), tolerance=1e-7)


@pytest.mark.parametrize(
  'changes',
  [pytest.param(changes, id=name) for name, changes in FAST_CART.items()]
  + [pytest.param(c, id=name, marks=pytest.mark.slow) for name, c in SLOW_CART.items()],
)
def test_cart(changes):
  config = CART | changes
  model, arrays, params, batch = drawn(config)
  logits = jax.jit(model.apply)(params, batch['tokens']).logits_BxTxV
  expected = numpy_reference.cart(arrays, batch['tokens'], config)
  assert np.isfinite(expected).all()
  assert_close(logits, expected)
