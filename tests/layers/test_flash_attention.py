"""Flash attention with dropout equals materialised attention with the same mask."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from crt_jax import sharding
from crt_jax.layers import attention_kernels, flash_attention
from crt_jax.layers.attention import within
from crt_jax.layers.flash_attention import Options, is_kept, pieces, salts
from tests.close import FEW_PRODUCTS, assert_close
from tests.contract.models import model_of, params_of, tokens_of


def draw(length, width, heads=2, groups=2, out_width=0, batch=1):
  generator = np.random.default_rng(0)
  shapes = ((heads, width), (groups, width), (groups, out_width or width))
  qkv = [generator.standard_normal((batch, length, *shape)) for shape in shapes]
  seed = generator.integers(0, 2**32, (batch, heads), np.uint32)
  return *(jnp.asarray(a, 'float32') for a in qkv), jnp.asarray(seed)


def mask_of(seed_BxH, length, rate):
  position = jnp.arange(length)

  def one(seed):
    return is_kept(salts(seed, position), position, rate)

  return jax.vmap(jax.vmap(one))(seed_BxH)


def materialised(q, k, v, seed, options):
  shared = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(a, shared, axis=2) for a in (k, v))
  position = jnp.arange(q.shape[1])
  scores = jnp.einsum('bthw,bshw->bhts', q, k) * options.scale
  seen = within(position[:, None], position[None], options.window)[None, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
  if options.rate:
    kept = mask_of(seed, q.shape[1], options.rate)
    weights = jnp.where(kept, weights / (1 - options.rate), 0)
  return jnp.einsum('bhts,bshw->bthw', weights, v)


def with_gradients(function, options):
  def both(q, k, v, seed):
    y, back = jax.vjp(lambda *qkv: function(*qkv, seed, options), q, k, v)
    return y, back(jnp.cos(y))

  return jax.jit(both)


CASES = [  # length, width, groups, window, rate; a tile has at most 64 positions
  (1, 2, 2, 0, 0.5),
  (16, 16, 2, 0, 0.0),
  (70, 70, 2, 0, 0.2),
  (130, 34, 1, 0, 0.2),
  (130, 8, 1, 70, 0.5),
  (67, 20, 2, 1, 0.2),
]


@pytest.mark.parametrize('length, width, groups, window, rate', CASES)
def test_values_and_gradients(length, width, groups, window, rate):
  arrays = draw(length, width, groups=groups, batch=2 if length < 64 else 1)
  options = Options(width**-0.5, window, rate)
  expected = with_gradients(materialised, options)(*arrays)
  found = with_gradients(flash_attention.attention, options._replace(interpret=True))(*arrays)
  assert_close(found, expected, FEW_PRODUCTS)


def test_values_may_be_wider_than_keys():
  arrays = draw(20, 6, out_width=40)
  options = Options(0.3, 0, 0.3)
  expected = with_gradients(materialised, options)(*arrays)
  found = with_gradients(flash_attention.attention, options._replace(interpret=True))(*arrays)
  assert_close(found, expected, FEW_PRODUCTS)


def test_each_device_drops_what_one_device_drops():
  """Rows and heads, with their seeds, on the eight devices of a mesh."""
  q, k, v, seed = draw(9, 8, batch=4)
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))

  def run(q, k, v, seed):
    dropped = attention_kernels.Dropped(0.3, seed)
    return attention_kernels.triton_attention(q, k, v, 3, dropped, interpret=True)

  def split(*arrays):
    with sharding.in_mesh(mesh):
      return run(*arrays)

  expected = materialised(q, k, v, seed, Options(8**-0.5, 3, 0.3))
  assert_close(jax.jit(run)(q, k, v, seed), expected, FEW_PRODUCTS)
  specs = [jax.sharding.PartitionSpec(sharding.BATCH_AXES, None, 'tensor')] * 3
  specs.append(jax.sharding.PartitionSpec(sharding.BATCH_AXES, 'tensor'))
  places = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in specs)
  found = jax.jit(split, in_shardings=places)(q, k, v, seed)
  assert found.sharding.shard_shape(found.shape) == (1, 9, 1, 8)
  assert_close(found, expected, FEW_PRODUCTS)


@pytest.mark.parametrize('rate', (0.1, 0.2, 0.5))
def test_masks_drop_a_share_and_resemble_no_other(rate):
  """Each correlation of n entries has a standard deviation of n^-0.5."""
  length = 512
  seed = jnp.asarray([[7, 8, 2**32 - 1, 12345]], jnp.uint32)
  kept = np.asarray(mask_of(seed, length, rate))[0].astype(float)
  spread = (rate * (1 - rate)) ** 0.5
  assert abs(1 - kept.mean() - rate) < 5 * spread / kept.size**0.5
  of_rows = kept.mean(axis=-1).std() * length**0.5 / spread
  of_columns = kept.mean(axis=-2).std() * length**0.5 / spread
  assert 0.9 < of_rows < 1.1 and 0.9 < of_columns < 1.1
  plain = (kept - (1 - rate)) / spread
  for other in (
    plain[:, :, 1:] * plain[:, :, :-1],
    plain[:, 1:] * plain[:, :-1],
    plain[:, 1:, 1:] * plain[:, :-1, :-1],
    plain[1:] * plain[:-1],
  ):
    assert abs(other.mean()) < 5 / other.size**0.5


def test_pieces_hold_a_head_in_powers_of_two():
  assert pieces(70) == [(0, 64), (64, 16)]
  assert pieces(64) == [(0, 64)] and pieces(8) == [(0, 16)]
  assert pieces(118) == [(0, 128)]
  for width in range(2, 258, 2):
    parts = pieces(width)
    assert sum(size for _, size in parts) >= width and len(parts) <= 2
    assert all(size >= 16 and size & (size - 1) == 0 for _, size in parts)
    assert [start for start, _ in parts] == [0, parts[0][1]][: len(parts)]


# ---- in the models -----------------------------------------------------------------------------


@pytest.fixture
def seeds(monkeypatch):
  """The seeds [B, H] of every call of the kernel, which is interpreted."""
  found, run = [], functools.partial(attention_kernels.triton_attention, interpret=True)

  def noted(q, k, v, window, dropped):
    if dropped is not None:
      jax.debug.callback(lambda seed: found.append(np.asarray(seed)), dropped.seed_BxH)
    return run(q, k, v, window, dropped)

  monkeypatch.setattr(attention_kernels, 'triton_attention', noted)
  return found


def loss_of(model, params, tokens, key=None):
  loss = jax.jit(lambda p, key: model.loss(p, dict(tokens=tokens, targets=tokens), key=key)[0])(
    params, key
  )
  jax.effects_barrier()
  return float(loss)


@pytest.mark.parametrize('name', ('cart', 'crt_sa', 'crt_llama'))
def test_a_model_says_the_same_through_the_kernel(name, seeds):
  plain, fused = (model_of(name, attention_kernel=kernel) for kernel in ('xla', 'triton'))
  params, tokens = params_of(plain), tokens_of(plain, batch=2)
  np.testing.assert_allclose(
    loss_of(plain, params, tokens), loss_of(fused, params, tokens), rtol=1e-5
  )
  assert not seeds


@pytest.mark.parametrize('rows', (1, 2, 3))
def test_every_layer_pass_row_and_head_draws_a_mask_of_its_own(rows, seeds):
  model = model_of('crt', attention_kernel='triton', dropout=0.5)
  params, tokens = params_of(model), tokens_of(model, batch=rows)
  losses = [loss_of(model, params, tokens, jax.random.key(n)) for n in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]
  of_one = model.config.layers * model.config.depth
  assert {each.shape for each in seeds} == {(rows, model.config.heads)}
  assert len(seeds) == 3 * of_one
  drawn = np.stack(seeds[:of_one])
  assert np.unique(drawn).size == drawn.size
  without = model_of('crt', attention_kernel='triton')
  assert loss_of(model, params, tokens) == loss_of(without, params, tokens)


def forward_calls(jaxpr):
  """Calls of the forward kernel whose results are read, in a program and those inside it."""
  read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
  found = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pallas_call':
      is_forward = len(eqn.invars) == 4  # q, k, v and seeds; backward kernels read more
      found += is_forward and any(id(v) in read for v in eqn.outvars)
    else:
      found += sum(forward_calls(inner) for inner in jax.extend.core.jaxprs_in_params(eqn.params))
  return found


def test_remat_dots_keeps_what_the_kernel_returns():
  """Remat 'dots' computes the kernel once a layer and pass, 'layer' again in the backward pass."""

  def calls(remat):
    model = model_of('crt', attention_kernel='triton', remat=remat, dropout=0.2)
    params, tokens = jax.eval_shape(model.init, jax.random.key(0)), tokens_of(model)
    gradient = jax.grad(model.loss, has_aux=True)
    batch = dict(tokens=tokens, targets=tokens)
    return forward_calls(jax.make_jaxpr(gradient)(params, batch, key=jax.random.key(0)).jaxpr)

  assert 0 < calls('dots') == calls('none') < calls('layer')
