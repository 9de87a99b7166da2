"""What 'auto' becomes on each device, and that it leaves what was set alone."""

import dataclasses

import jax
import pytest

import crt_jax
from crt_jax.models import attention_choice
from tests.contract.models import CONFIGS, model_of
from tests.models.test_attention_choice import A100, H100, RADEON, TPU, device

V100 = H100 | dict(device_kind='Tesla V100-SXM2-16GB', compute_capability='7.0')
CPU = dict(platform='cpu', device_kind='cpu')
ANYWHERE = ('xla', 'none', 'no', 64)
FUSED = ('cudnn', 'dots', 'yes', 4096)


def settled(fields, **changes):
  changes = dict(dtype='bfloat16') | changes
  config = crt_jax.build(CONFIGS['crt'] | changes, device(fields)).config
  return config.attention_kernel, config.remat, config.unroll_scans, config.loss_chunk_mib


@pytest.mark.parametrize(
  'fields, changes, expected',
  [
    (H100, {}, FUSED),
    (A100, {}, FUSED),
    (A100, dict(width=512, heads=2), ANYWHERE),  # heads of 256
    (V100, {}, ANYWHERE),
    (H100, dict(dtype='float32'), ANYWHERE),
    (RADEON, {}, ANYWHERE),
    (TPU, {}, ANYWHERE),
    # A CPU compiles few passes of few layers written out as fast as in a scan.
    (CPU, dict(layers=2, depth=5), (*ANYWHERE[:2], 'yes', 64)),
    (CPU, dict(layers=2, depth=6), ANYWHERE),
    (CPU, dict(layers=2, depth=5, depth_schedule='9:6'), ANYWHERE),
    (CPU, dict(layers=2, depth=5, driver='sequential'), ANYWHERE),
    (CPU, dict(unroll_scans='no'), ANYWHERE),
    # Asked for, but dropout and caches need materialised scores.
    (H100, dict(dropout=0.2), ('cudnn', *ANYWHERE[1:])),
    (H100, dict(driver='sequential'), ('cudnn', *ANYWHERE[1:])),
    (H100, dict(dropout=0.2, attention_kernel='triton'), ('triton', *FUSED[1:])),
    # What is set stays, and the rest follows it.
    (H100, dict(attention_kernel='xla'), ANYWHERE),
    (H100, dict(remat='layer', unroll_scans='no'), ('cudnn', 'layer', 'no', 4096)),
    (H100, dict(remat='none', loss_chunk_mib=7), ('cudnn', 'none', 'yes', 7)),
    (TPU, dict(attention_kernel='splash', remat='pass'), ('splash', 'pass', 'no', 64)),
  ],
)
def test_what_auto_becomes(fields, changes, expected):
  assert settled(fields, **changes) == expected


def test_without_a_device_it_runs_anywhere():
  config = model_of('roformer', dtype='bfloat16').config
  fields = CONFIGS['roformer'] | dict(dtype='bfloat16')
  assert config == crt_jax.build(fields, jax.devices()[0]).config
  assert dataclasses.astuple(config).count('auto') == 0
  assert attention_choice.describe(config) == 'xla, scores materialised'


def test_a_gpu_that_is_too_old_is_refused_by_name():
  config = model_of('crt', dtype='bfloat16', attention_kernel='cudnn').config
  with pytest.raises(ValueError, match='needs compute capability 8.0, and a Tesla V100.* has 7.0;'):
    attention_choice.check_device(config, device(V100))


def test_why_scores_are_materialised_is_said():
  config = crt_jax.build(CONFIGS['crt'] | dict(dtype='bfloat16', dropout=0.2), device(H100)).config
  assert attention_choice.describe(config).endswith(
    'not cudnn: model.dropout=0.2 drops attention weights'
  )
