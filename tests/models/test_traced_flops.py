"""The count in a traced program, by hand; the closed formulas of accounting against it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

import crt_jax
from crt_jax import accounting
from crt_jax.models.traced_flops import traced_flops

BATCH, LENGTH, WIDTH, VOCAB = 4, 32, 32, 64
COMMON = dict(vocab_size=VOCAB, width=WIDTH)
TRANSFORMER = COMMON | dict(name='transformer', layers=3, heads=2, rotary='integer')
CRT = COMMON | dict(name='crt', layers=3, heads=2, depth=4, rotary='integer')
CART = COMMON | dict(name='cart', head_width=16, prelude_layers=2, loops=4)
CRT_CART = CART | dict(name='crt', block='cart', depth=3)
CODES = 2 * 2 * 4 * 32 * WIDTH / (BATCH * LENGTH)


def flops_of_gradient(fields, depth=None, **changes) -> float:
  """Per token, of the traced gradient of the loss."""
  model = crt_jax.build(fields | changes)
  params = jax.eval_shape(model.init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
  gradient = jax.grad(functools.partial(model.loss, depth=depth), has_aux=True)
  return traced_flops(gradient, params, dict(tokens=rows, targets=rows)) / (BATCH * LENGTH)


def test_bodies_count_as_often_as_they_run():
  a, b = jnp.zeros((3, 5)), jnp.zeros((5, 5))

  def looped(a, b):
    return jax.lax.scan(lambda a, _: (jax.jit(jnp.matmul)(a, b), None), a, length=7)[0]

  assert traced_flops(looped, a, b) == 7 * 2 * 3 * 5 * 5


@pytest.mark.parametrize(
  'fields, attended, codes',
  [
    (TRANSFORMER, 3, 0),
    (CRT, 3 * 4, 0),
    # The code of the loops is projected once for all positions, forward and backward; forward, the
    # scan over the first K - 1 passes does so once for all of them.
    (CART, 2 + 4 + 1, CODES),
    (CRT_CART, 3 * (2 + 4 + 1), (3 + 2) / 2 * CODES),
  ],
)
def test_the_formula_of_model_flops(fields, attended, codes):
  """The formula counts the causal half of attention; what is traced has the whole square."""
  half = 3 * attended * 2 * LENGTH * WIDTH
  formula = accounting.model_flops(fields, LENGTH)
  assert flops_of_gradient(fields) == formula + half + codes


SEQUENTIAL = dict(driver='sequential', backward='scan')
CHUNKED = dict(driver='chunked', chunk=8, backward='scan')
DRIVERS = [
  *[dict(gradient='last_passes', gradient_reach=k) for k in (1, 2)],
  *[dict(gradient='implicit', gradient_reach=r) for r in (1, 5)],
  dict(),
  CHUNKED,
  CHUNKED | dict(gradient='truncated', gradient_reach=16),
]
RECIPES = [
  dict(),
  dict(convergence_weight=0.1),
  dict(start='corrected'),
  dict(correction='px'),
  dict(correction='token_blind', start='corrected', convergence_weight=0.1),
  dict(correction='delta_ffn'),
  dict(correction='sa'),
]


FAST = [(driver, {}) for driver in DRIVERS] + [(DRIVERS[0], recipe) for recipe in RECIPES[1:3]]


def marks_of(driver, recipe):
  if (driver, recipe) in FAST:
    return ()
  return pytest.mark.slow if driver == CHUNKED or recipe == RECIPES[-1] else pytest.mark.exhaustive


@pytest.mark.parametrize(
  'driver, recipe',
  [pytest.param(*case, marks=marks_of(*case)) for case in itertools.product(DRIVERS, RECIPES)],
)
def test_every_gradient_at_every_drawn_depth(driver, recipe):
  """Of a text twice as long, or twice what the caches hold, the causal half is the square."""
  fields = CRT | dict(layers=2) | driver | recipe
  attended = 2 * (LENGTH + fields.get('chunk', 0))
  for depth in (2, 4):
    again = 0
    if fields.get('gradient') == 'implicit':  # the pass whose gradient is pulled back
      again = one_pass(fields, LENGTH)
    formula = accounting.model_flops(fields, attended, depth) + again
    assert flops_of_gradient(fields, depth=depth) == formula


def one_pass(fields, length) -> float:
  """A forward pass and its correction, but for the last product, which no gradient needs."""
  found = accounting.model_flops(fields, 2 * length, training=False, sequential=True)
  return found - 2 * VOCAB * WIDTH - 2 * 4 * WIDTH**2


@pytest.mark.parametrize('cut', (dict(), dict(gradient='truncated', gradient_reach=8)))
def test_positions_in_sequence(cut):
  fields = CRT | SEQUENTIAL | cut
  assert flops_of_gradient(fields) == accounting.model_flops(fields, 2 * (LENGTH + 1))


@pytest.mark.parametrize('backprop', (0, 1, 2))
def test_drawn_loops(backprop):
  fields = CART | dict(backprop_loops=backprop)
  for depth in (1, 3, 4):
    codes = 2 * 2 * depth * 32 * WIDTH / (BATCH * LENGTH)
    formula = accounting.model_flops(fields, 2 * LENGTH, depth)
    assert flops_of_gradient(fields, depth=depth) == formula + codes


@pytest.mark.parametrize('fields, applications', [(TRANSFORMER, 3), (CRT, 3 * 4), (CART, 2 + 4)])
def test_dots_recomputes_attention_alone(fields, applications):
  """Scores and what they mix, in every layer of every pass: no product with a weight. The coda of a
  CART stands outside."""
  extra = flops_of_gradient(fields, remat='dots') - flops_of_gradient(fields)
  assert extra == applications * 4 * LENGTH * WIDTH


def test_remat_recomputes_what_it_says():
  pass_flops = 3 * (2 * 12 * WIDTH**2 + 4 * LENGTH * WIDTH)
  plain = flops_of_gradient(CRT)
  # Of a layer the last product is not needed again.
  unneeded = 3 * 2 * 4 * WIDTH**2
  layer = flops_of_gradient(TRANSFORMER, remat='layer') - flops_of_gradient(TRANSFORMER)
  assert layer == pass_flops - unneeded
  one, both = (flops_of_gradient(CRT, remat=remat) - plain for remat in ('pass', 'layer'))
  assert 3 * layer <= one < 3 * (pass_flops + 2 * 8 * WIDTH**2)  # all passes but the last
  assert both > one + layer
