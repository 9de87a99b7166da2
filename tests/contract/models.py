"""The small models that the contract suite runs over, and what it needs to know of each."""

import jax
import numpy as np

import crt_jax
from tests.contract import odd_state  # noqa: F401 - registers the model of this name

_CRT = dict(name='crt', vocab_size=23, width=16, heads=2, layers=2, rotary='integer_reversed')
_TRANSFORMER = dict(name='transformer', vocab_size=23, width=16, heads=2, layers=2)
_CRT_CART = dict(
  name='crt',
  block='cart',
  vocab_size=23,
  width=16,
  head_width=8,
  prelude_layers=2,
  loops=2,
  depth=3,
)
_CART = dict(name='cart', vocab_size=23, width=16, head_width=8, prelude_layers=2, loops=3)

_LLAMA = dict(style='llama', heads=4, kv_heads=2, head_width=6, feed_forward_width=20)
_GPT2 = dict(style='gpt2', max_positions=24)

CONFIGS = {
  'crt': _CRT | dict(depth=3),
  'crt_windowed': _CRT | dict(depth=3, window=3, rotary='integer'),
  'crt_sa': _CRT | dict(depth=3, correction='sa', layers=1),
  'crt_px': _CRT | dict(depth=3, correction='px', rotary='standard'),
  'crt_llama': _CRT
  | _LLAMA
  | dict(rotary='', depth=3, tied=True, rotary_scaling='linear', rotary_factor=2),
  'crt_gpt2': _CRT | _GPT2 | dict(rotary='', depth=3),
  'crt_cart': _CRT_CART,
  'crt_cart_per_loop': _CRT_CART | dict(anchor='per_loop', correction='sa', window=3),
  'odd_state': _CRT | dict(name='odd_state', depth=3, layers=1),
  'cart': _CART,
  'cart_per_loop': _CART | dict(anchor='per_loop', blend=False),
  'cart_self_unshared': _CART | dict(core='self', share_core=False, loop_code=False),
  'cart_full_rank': _CART | dict(latent_ratio=0, anchor_norm=True, gate=False, core_residual=False),
  'roformer': _TRANSFORMER | dict(rotary='integer_reversed'),
  'roformer_head_ffn': _TRANSFORMER | dict(rotary='standard', style='roformer_head_ffn', window=3),
  'cart_dense': _TRANSFORMER | dict(style='cart_dense'),
  'llama': _TRANSFORMER | _LLAMA | dict(qk_norm=True, qkv_bias=True),
  'gpt2': _TRANSFORMER | _GPT2,
  'cart_dense_latent': _TRANSFORMER | dict(style='cart_dense', latent_ratio=4),
}

BATCH, LENGTH = 2, 7


def model_of(name: str, **changes):
  return crt_jax.build(CONFIGS[name] | changes)


def params_of(model, seed: int = 0, dtype='float32'):
  """Parameters large enough that mistakes show; drawn and cast by NumPy, since JAX compiles a
  program per shape."""
  generator = np.random.default_rng(seed)

  def draw(path, a):
    name = path[-1].key
    size = 2 * model.config.width**-0.5 if name == 'weight' else 0.1
    size = 1.0 if path[0].key in ('embedding', 'blend') else size
    centre = {'scale': 1.0, 'logit': 2.0}.get(name, 0.0)
    return (centre + size * generator.standard_normal(a.shape)).astype(dtype)

  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def tokens_of(model, seed: int = 1, batch: int = BATCH, length: int = LENGTH):
  generator = np.random.default_rng(seed)
  tokens_BxT = generator.integers(0, model.config.vocab_size, (batch, length))
  return jax.device_put(tokens_BxT.astype('int32'))


def exact_depth(model, length: int):
  """A depth at which parallel passes equal the sequential form at every position."""
  return length + 1 if model.recurs_along_sequence else None
