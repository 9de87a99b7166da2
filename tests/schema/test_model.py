"""A mistake in config.model is one line that names the field and the fix."""

import ml_collections
import pytest

import crt_jax

CRT = dict(name='crt', vocab_size=11, width=8, heads=2, layers=2, rotary='integer')
CART = dict(name='cart', vocab_size=11, width=128)


def test_a_config_dict_and_a_mapping_build_the_same_model():
  assert crt_jax.build(ml_collections.ConfigDict(CRT)) == crt_jax.build(CRT)
  assert crt_jax.build(CRT | dict(dropout=0)) == crt_jax.build(CRT)


@pytest.mark.parametrize(
  'changes, message',
  (
    (dict(name='crtt'), "model.name='crtt' must be one of .*did you mean 'crt'"),
    (dict(widht=8), "model.widht is no field; did you mean 'width'"),
    (
      dict(width=100, heads=16),
      r'model.width=100 must be divisible by model.heads=16; use 96 or 112',
    ),
    (dict(width=6, heads=2), 'head width 3, .*even; use a width that is a multiple of 4'),
    (dict(width=8, heads=2, head_width=8), 'is not model.width=8'),
    (dict(heads=0), 'model.heads is missing'),
    (dict(vocab_size=0), 'model.vocab_size=0 must be at least 1'),
    (dict(layers=0), 'model.layers=0 must be at least 1'),
    (dict(depth=0), 'model.depth=0 must be at least 1'),
    (dict(depth=3, depth_min=4), 'model.depth_min=4 must lie between 0'),
    (dict(dropout=1.0), 'model.dropout=1.0 must be below 1'),
    (dict(dropout='much'), "model.dropout='much' must be a number .float., not str"),
    (dict(layers=2.0), 'model.layers=2.0 must be a whole number .int., not float'),
    (dict(cumulative=1), 'model.cumulative=1 must be true or false .bool., not int'),
    (dict(dtype='float23'), "model.dtype='float23' must be one of .*did you mean 'float32'"),
    (dict(rotary=''), "model.rotary is missing; choose one of 'integer_reversed'"),
    (dict(layers=2**70), 'model.layers=.* must be at most 10000'),
    (dict(depth=1e12), 'model.depth=1000000000000.0 must be a whole number'),
    (dict(width=2**32), 'model.width=4294967296 must be at most 131072'),
    (dict(depth=300, depth_min=1), 'training would draw 300 different depths'),
    (dict(rotary='interger'), "did you mean 'integer'"),
    (dict(correction='tokenblind'), "did you mean 'token_blind'"),
    (dict(start='embed'), "model.start='embed' must be one of"),
    (dict(convergence_weight=-1.0), 'model.convergence_weight=-1.0 must be at least 0'),
    (dict(driver='chunked'), 'model.chunk=0 must be at least 1'),
    (dict(dtype='float64'), 'set jax_enable_x64'),
    (dict(attention_kernel='cudnn'), "needs model.dtype='bfloat16'"),
    (dict(attention_kernel='splash', dtype='float16'), "needs model.dtype='bfloat16'"),
    (dict(attention_kernel='flash'), "model.attention_kernel='flash' must be one of 'xla', 'cu"),
    (dict(window=-1), 'model.window=-1'),
  ),
)
def test_mistakes(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    crt_jax.build(CRT | changes)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'changes, message',
  (
    (dict(block='card'), "model.block='card' must be one of .*did you mean 'cart'"),
    (dict(layers=2), "model.layers=2 does not go with model.block='cart'; leave it out"),
    (dict(heads=4), "model.heads=4 does not go with model.block='cart'.* model.head_width=32"),
    (dict(rotary='integer'), "model.rotary='integer' must be 'standard' for model.block='cart'"),
    (dict(correction='tied'), "model.correction='tied' borrows .* a CARTBlock lends none"),
    (dict(prelude_layers=1), 'model.prelude_layers=1 must be at least 2'),
    (dict(core='self', anchor='per_loop'), "model.core='self' has no anchor"),
    (
      dict(block='transformer', heads=2, layers=1, rotary='integer', loops=3),
      'model.loops=3 is only for',
    ),
    (dict(width=100), 'model.width=100 must be divisible by model.head_width=64'),
  ),
)
def test_mistakes_of_a_crt_over_a_cart(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    crt_jax.build(CART | dict(name='crt', block='cart') | changes)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('field', ('vocab_size', 'width', 'layers'))
def test_missing_fields(field):
  with pytest.raises(ValueError, match=f'model.{field} is missing'):
    crt_jax.build({key: value for key, value in CRT.items() if key != field})


@pytest.mark.parametrize(
  'changes, message',
  (
    (dict(width=100), 'model.width=100 must be divisible by model.head_width=64; use 64 or 128'),
    (dict(loops=0), 'model.loops=0 must be at least 1'),
    (
      dict(prelude_layers=1),
      'model.prelude_layers=1 must be at least 2 .*model.short_prelude=True',
    ),
    (dict(prelude_layers=-1, short_prelude=True), 'model.prelude_layers=-1 must be at least 0'),
    (dict(loops=4, loops_min=5), 'model.loops_min=5 must lie between 0 and model.loops=4'),
    (dict(loops=4, backprop_loops=5), 'model.backprop_loops=5 must lie between 0'),
    (dict(backprop_loops=2, anchor='per_loop'), 'model.backprop_loops=2 leaves the prelude no'),
    (dict(backprop_loops=2, core='self'), "set model.core='cross' and model.anchor='frozen'"),
    (dict(core='self', anchor='per_loop'), "model.core='self' has no anchor"),
    (dict(core_residual=False), 'set model.gate=False'),
    (dict(latent_ratio=3), 'model.latent_ratio=3'),
    (dict(loops=300, loops_min=1), 'training would draw 300 different depths'),
    (dict(loop_code_width=5), 'model.loop_code_width=5 must be even'),
    (dict(gate_init=1.0), 'model.gate_init=1.0'),
  ),
)
def test_mistakes_of_cart(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    crt_jax.build(CART | changes)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'changes, message',
  (
    (dict(latent_ratio=3, style='cart_dense', width=64), 'model.latent_ratio=3 must be 0'),
    (dict(latent_ratio=4, heads=2, rotary='integer'), "model.latent_ratio=4 needs model.style='ca"),
  ),
)
def test_mistakes_of_a_transformer(changes, message):
  with pytest.raises(ValueError, match=message):
    crt_jax.build(dict(name='transformer', vocab_size=11, width=8, layers=1) | changes)
