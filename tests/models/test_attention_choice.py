"""Which kernel a configuration runs, and what is refused before anything is compiled."""

import types

import jax
import pytest

from crt_jax.models import attention_choice
from tests.contract.models import model_of

H100 = dict(platform='gpu', device_kind='NVIDIA H100 80GB HBM3', compute_capability='9.0')
A100 = H100 | dict(device_kind='NVIDIA A100-SXM4-80GB', compute_capability='8.0')
RADEON = dict(platform='gpu', device_kind='AMD Instinct', compute_capability='gfx942')
TPU = dict(platform='tpu', device_kind='TPU v5 lite')


def device(fields):
  return types.SimpleNamespace(**fields)


def config_of(kernel, name='crt', **changes):
  fields = dict(attention_kernel=kernel, dtype='bfloat16') | changes
  return model_of(name, **fields).config


@pytest.mark.parametrize(
  'kernel, fields, wanted',
  [
    ('cudnn', TPU, "'cudnn' needs an NVIDIA GPU, and JAX found tpu"),
    ('cudnn', RADEON, "'cudnn' needs an NVIDIA GPU, and JAX found gpu"),
    ('splash', H100, "'splash' needs a TPU, and JAX found gpu"),
    ('triton', RADEON, "'triton' needs an NVIDIA GPU, and JAX found gpu"),
  ],
)
def test_a_kernel_of_another_platform_is_refused(kernel, fields, wanted):
  with pytest.raises(ValueError, match=wanted) as caught:
    attention_choice.check_device(config_of(kernel), device(fields))
  assert "use model.attention_kernel='xla'" in str(caught.value) and '\n' not in str(caught.value)


def test_a_kernel_of_this_platform_is_taken():
  places = dict(cudnn=(H100, A100), splash=(TPU,), xla=(RADEON,), triton=(H100, A100))
  for kernel, fields in ((kernel, one) for kernel, all in places.items() for one in all):
    attention_choice.check_device(config_of(kernel), device(fields))
  for kernel in ('cudnn', 'splash', 'triton'):  # the tests' own device is a CPU
    with pytest.raises(ValueError, match='JAX found cpu'):
      attention_choice.check_device(config_of(kernel))


def test_cudnn_takes_heads_of_128_and_from_hopper_on_of_256():
  wide = config_of('cudnn', width=512, heads=2)
  attention_choice.check_device(wide, device(H100))
  with pytest.raises(ValueError, match='up to 128 on a NVIDIA A100.*these are 256 wide'):
    attention_choice.check_device(wide, device(A100))
  with pytest.raises(ValueError, match='up to 256, and these are 258 wide; use more model.heads'):
    config_of('cudnn', width=516, heads=2)
  with pytest.raises(ValueError, match="'triton' takes heads of up to 128, and these are 130"):
    config_of('triton', width=260, heads=2)
  with pytest.raises(ValueError, match="'triton' takes heads of up to 64, and these are 66"):
    config_of('triton', width=132, heads=2, dtype='float32')


def test_dropout_and_caches_need_materialised_scores():
  """Whatever is asked for; then nothing is demanded of dtype or device either."""
  dropped = config_of('cudnn', dropout=0.2, dtype='float32')
  attention_choice.check_device(dropped)
  assert attention_choice.describe(dropped) == (
    'xla, scores materialised, not cudnn: model.dropout=0.2 drops attention weights'
  )
  chunked = config_of('splash', driver='chunked', chunk=2)
  assert attention_choice.running(chunked) == ('xla', "model.driver='chunked' attends to caches")
  # Its evaluation in parallel passes would run the kernel.
  with pytest.raises(ValueError, match='needs a TPU'):
    attention_choice.check_device(chunked)


def test_triton_drops_weights_itself():
  dropped = config_of('triton', dropout=0.2, dtype='float32')
  assert attention_choice.running(dropped) == ('triton', '')
  assert attention_choice.describe(dropped) == 'triton, heads of 8'
  with pytest.raises(ValueError, match='JAX found cpu'):
    attention_choice.check_device(dropped)


def test_what_runs_is_said_with_the_head_width():
  assert attention_choice.describe(config_of('xla')) == 'xla, scores materialised'
  assert attention_choice.describe(config_of('cudnn')) == 'cudnn, heads of 8'
  assert attention_choice.describe(config_of('splash', 'cart', width=140, head_width=70)) == (
    'splash, heads of 70 padded to 72'
  )


def test_a_model_is_read_where_its_kernel_cannot_run(monkeypatch):
  """Whether it can, is asked of the configuration without it: of its dtype, then of the device."""
  plain = config_of('xla')
  assert not attention_choice.fits(plain, 'cudnn') and attention_choice.fits(plain, 'xla')
  monkeypatch.setattr(jax, 'devices', lambda: [device(H100)])
  assert attention_choice.fits(plain, 'cudnn')
  assert not attention_choice.fits(config_of('xla', dtype='float32'), 'cudnn')
