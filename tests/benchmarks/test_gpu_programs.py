"""What a GPU would execute: the readers on small texts, and decoding compiled for an H100 that is
not there, whose kernels may not become more."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import claim_programs
from benchmarks.gpu_programs import row_label
from benchmarks.gpu_text import Program, kernels
from experiments.claims import budgets
from experiments.claims.registered import CLAIMS
from experiments.latency.launches import count

# Kernels in the loop of a token (bfloat16, batch 1), as last reduced.
HELD = dict(
  crt_d1_c2048=32,
  transformer_n6=67,
  crt_d5_c1120=62,
  transformer_n12=117,
  crt_d1_c2048_pallas=14,
  transformer_n6_pallas=37,
  crt_d5_c1120_pallas=34,
  transformer_n12_pallas=67,
)

THUNKS = """\
000: kCommandBuffer [source       | next=002 (1)]
    001: kCopy         [source       | sink        ] kCopy
002: kWhile         [prev=000 (1) | next=056 (1)]
condition:
    003: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
  body:
    000: kCommandBuffer      [prev=008 (1) | sink        ]
        004: kCustomKernel [source        | next=038 (28)] loop_convert_fusion_6
        005: kGemm [source        | next=038 (28)] gemm
006: kCustomKernel  [prev=006 (1) | sink        ] input_transpose_fusion grid: [224, 1, 1]
"""

HLO = """\
HloModule jit_f

%fused (p0: bf16[4,64], p1: s32[], p2: bf16[1,64]) -> bf16[4,64] {
  %p0 = bf16[4,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[1,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = bf16[4,64]{1,0} dynamic-update-slice(%p0, %p2, %p1, %zero)
}

%body (state: (s32[], bf16[4,64], bf16[1,64])) -> (s32[], bf16[4,64], bf16[1,64]) {
  %state = (s32[], bf16[4,64]{1,0}, bf16[1,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %cache = bf16[4,64]{1,0} get-tuple-element(%state), index=1
  %row = bf16[1,64]{1,0} get-tuple-element(%state), index=2
  %written = bf16[4,64]{1,0} fusion(%cache, %i, %row), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/attention/qkv/dot_general"}
  ROOT %out = (s32[], bf16[4,64]{1,0}, bf16[1,64]{1,0}) tuple(%i, %written, %row)
}

%condition (state: (s32[], bf16[4,64], bf16[1,64])) -> pred[] {
  %state = (s32[], bf16[4,64]{1,0}, bf16[1,64]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (a: (s32[], bf16[4,64], bf16[1,64]), b: f32[256,128]) -> f32[128,256] {
  %a = (s32[], bf16[4,64]{1,0}, bf16[1,64]{1,0}) parameter(0)
  %b = f32[256,128]{1,0} parameter(1)
  %loop = (s32[], bf16[4,64]{1,0}, bf16[1,64]{1,0}) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %wrapped_transpose = f32[128,256]{1,0} copy(%b)
}
"""  # noqa: E501


def test_thunks_are_counted_in_the_loop_and_beside_it():
  assert kernels(THUNKS) == (3, 2, 2)


def test_an_update_in_place_moves_what_it_writes():
  program = Program(HLO)
  body = program.token_loop()
  assert count(program.lines, body) == 1 and count(program.lines, program.entry) == 4
  # The row is read and written, and the index read; the cache is neither.
  part = 'attention: query, key, value and output projections'
  assert program.bytes_by_part(body) == {part: 128 + 128 + 4}
  assert program.bytes_by_part(program.entry) == {part: 3 * 260, 'the rest': 2 * 256 * 128 * 4}
  assert program.moves() == [dict(where='outside', name='wrapped_transpose', bytes=1 << 17)]


def test_rows_scattered_into_a_cache_move_what_they_write():
  text = HLO.replace(
    'dynamic-update-slice(%p0, %p2, %p1, %zero)', 'scatter(%p0, %p1, %p2), to_apply=%region'
  )
  program = Program(text)
  assert sum(program.bytes_by_part(program.token_loop()).values()) == 128 + 128 + 4
  fresh = Program(
    text.replace('scatter(%p0', 'scatter(%new').replace('%zero = s32[]', '%new = s32[]')
  )
  assert sum(fresh.bytes_by_part(fresh.token_loop()).values()) == 512 + 128 + 4


def test_a_slice_reads_what_it_returns():
  sliced = '%one = bf16[1,64]{1,0} slice(%p2), slice={[0:1], [0:64]}'
  text = HLO.replace('bf16[1,64]', 'bf16[9,64]').replace('%p0, %p2, %p1', '%p0, %one, %p1')
  program = Program(text.replace('parameter(2)\n', f'parameter(2)\n  {sliced}\n'))
  assert sum(program.bytes_by_part(program.token_loop()).values()) == 128 + 128 + 4


def test_moves_are_found_in_what_is_called():
  head, main = HLO.split('ENTRY')
  called = '%call (b: f32[256,128]) -> f32[128,256] {'
  main = main.replace('copy(%b)', 'call(%b), to_apply=%call')
  text = f'{head}{called}\n  ROOT %copy = f32[128,256]{{1,0}} copy(%b)\n}}\n\nENTRY{main}'
  assert Program(text).moves() == [dict(where='outside', name='copy', bytes=1 << 17)]


def test_programs_of_a_claim_stand_for_all_of_its_arms():
  programs = claim_programs.claimed()
  for name in ('conversion', 'retrofit'):
    mine = [arms for label, (arms, _) in programs.items() if label.startswith(f'{name}/')]
    named = [arm.name for arms in mine for arm in arms]
    assert sorted(named) == sorted(arm.name for arm in CLAIMS[name].design('gpu').arms)
    for arms in mine:
      models = {budgets.config_of(arm).model.to_json() for arm in arms}
      assert len(models) == 1, arms
  assert len(mine) == 5  # the correction alone has the model of the CRT, but another backward pass


def test_minutes_follow_from_the_mean_step(monkeypatch):
  """A step of 3 s with K=3 passes; K is drawn from 2 and 3."""
  row = dict(predicted_us=dict(in_graph=3e6))
  monkeypatch.setattr(claim_programs, 'training_on', lambda device, config: row)
  monkeypatch.setattr(claim_programs, 'device_of', lambda target: jax.devices()[0])
  found = claim_programs.claim_of('conversion/wiki-converted', 'h100')['minutes']
  assert list(found) == ['wiki-converted', 'wiki-scratch', 'edu-converted', 'edu-scratch']
  converted, scratch = found['wiki-converted'], found['wiki-scratch']
  assert scratch - 1 == pytest.approx(2 * (converted - 1), abs=0.2)  # twice the steps, one start
  passes = (converted - 1) * 60 / 8000  # seconds of a mean step, between those of K=2 and K=3
  assert 2 < passes < 3


@pytest.fixture(scope='module')
def plugin():
  """A folder with JAX's CUDA plugin alone, beside the environment of the tests."""
  cache = pathlib.Path(os.environ.get('CRT_JAX_CACHE') or '~/.cache/crt_jax').expanduser()
  folder = cache / f'cuda13-plugin-{jax.__version__}'
  wheels = [f'jax-cuda13-{name}=={jax.__version__}' for name in ('plugin', 'pjrt')]
  command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', f'--target={folder}']
  if not (folder / 'installed').exists():
    try:
      subprocess.run([*command, *wheels], stderr=subprocess.PIPE, check=True, timeout=120)
    except subprocess.TimeoutExpired as error:
      pytest.skip(f'{" ".join(wheels)} cannot be had: not in {error.timeout} s')
    except subprocess.CalledProcessError as error:
      last = error.stderr.decode().strip().splitlines()[-1]
      pytest.skip(f'{" ".join(wheels)} cannot be had: {last}')
    (folder / 'installed').touch()
  return folder


def run(plugin, *arguments):
  """Runs Python beside the plugin; returns what it prints."""
  env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  env |= dict(PYTHONPATH=str(plugin), JAX_PLATFORMS='cpu', JAX_ENABLE_COMPILATION_CACHE='false')
  command = [sys.executable, *arguments]
  return subprocess.run(command, env=env, check=True, timeout=180, stdout=subprocess.PIPE).stdout


@pytest.mark.slow
def test_on_an_h100_a_token_has_few_kernels(plugin, tmp_path):
  models, file = f'--decode={",".join(HELD)}', f'--output={tmp_path}/gpu.json'
  run(plugin, '-m', 'benchmarks.aot', '--target=h100', models, file)
  found = json.loads((tmp_path / 'gpu.json').read_text())['results']
  for name, held in HELD.items():
    row = found[f'decode {name}'][row_label('h100')]
    assert row['kernels_per_token'] <= held, name
    assert row['jax'] == jax.__version__ and row['bytes'] < 1.1 * row['memory_bytes']
    assert not row['moves'], 'whole caches are copied or transposed'


CAPACITIES = """
from benchmarks.gpu_programs import decoded, decoding_on, device_of
for name in ('crt_d1_c2048', 'transformer_n6'):
  for slots in (64, 8192):
    row = decoding_on(device_of('h100'), decoded()[name], capacity=slots, end=17)
    print(row['bytes'] if not row['moves'] else 'moves')
"""


@pytest.mark.slow
def test_on_an_h100_the_first_token_of_large_caches_reads_few_slots(plugin):
  small_d1, large_d1, small_n6, large_n6 = map(int, run(plugin, '-c', CAPACITIES).split())
  assert large_d1 < 1.1 * small_d1 and large_n6 < 1.1 * small_n6
