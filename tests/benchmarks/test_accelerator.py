"""The driver of the accelerator's minutes, with small processes; --smoke runs its real table."""

import importlib.util
import json
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import accelerator, kernels
from benchmarks.gpu_programs import row_label
from crt_jax.cli.user_errors import Mistake


def step(name, *words, module='platform', takes=0, limit=60, **fields):
  return accelerator.Step(name, takes, limit, module, words, **fields)


FAILING = step('failing', module='no_such_module')
ENDLESS = step('endless', '-n1', '-r1', 'import time; time.sleep(60)', module='timeit', limit=1)
DONE = step('done', '--terse')


@pytest.fixture
def measured(tmp_path, monkeypatch):
  """A function that measures steps on a device and returns step and outcome of all rows."""
  flags.FLAGS.mark_as_parsed()
  monkeypatch.setattr(accelerator.signal, 'signal', lambda *_: None)
  description, output = tmp_path / 'device.json', tmp_path / 'results'
  described = step('device', str(description), '{scratch}/device.json', module='json.tool')

  def run(*steps, device=described, device_name='a GPU', platform='gpu', jax='1', **changes):
    about = dict(device=device_name, platform=platform, versions=dict(jax=jax))
    description.write_text(json.dumps(about))
    monkeypatch.setattr(accelerator, 'DEVICE', device)
    monkeypatch.setattr(accelerator, 'STEPS', (device, *steps))
    with flagsaver.flagsaver(**dict(output=str(output), commit='abc') | changes):
      accelerator.main([])
    run.rows = accelerator.read(output / accelerator.RESULTS)
    return [(row['step'], row['outcome']) for row in run.rows]

  return run


def test_a_failure_and_a_limit_are_rows_and_not_the_end(measured):
  assert measured(FAILING, ENDLESS, DONE) == [
    ('device', 'done'),
    ('failing', 'failed with exit code 1'),
    ('endless', 'over its limit'),
    ('done', 'done'),
  ]
  assert 'No module named no_such_module' in measured.rows[1]['said'][-1]
  assert 1 <= measured.rows[2]['seconds'] < 20
  assert {row.get('device') for row in measured.rows[1:]} == {'a GPU'}
  about = dict(device='a GPU', platform='gpu', versions=dict(jax='1'))
  assert measured.rows[0]['found'] == {'device.json': about}


def test_what_is_done_is_left_out_and_what_failed_waits(measured):
  measured(FAILING, DONE)
  new = step('new')
  assert [name for name, _ in measured(FAILING, DONE, new)[3:]] == ['device', 'new', 'failing']
  assert [name for name, _ in measured(DONE, device_name='other')[6:]] == ['device', 'done']
  assert [name for name, _ in measured(DONE, commit='def')[8:]] == ['device', 'done']
  assert [name for name, _ in measured(DONE, smoke=True)[10:]] == ['device', 'done']
  assert [name for name, _ in measured(DONE, jax='2')[12:]] == ['device', 'done']
  assert [name for name, _ in measured(DONE)[14:]] == ['device']


def test_a_device_that_says_nothing_is_asked_again_without_flags_of_xla(measured):
  device = step('device', '{scratch}/none.json', module='json.tool')
  assert measured(DONE, device=device) == [
    ('device', 'failed with exit code 2'),
    ('device', 'failed with exit code 2'),
    ('done', 'done'),
  ]


def test_what_cannot_be_done_is_not_begun(measured, capsys):
  long, absent = step('long', takes=700), step('absent', needs='no_such_module')
  assert measured(long, absent, DONE) == [('device', 'done'), ('done', 'done')]
  assert 's are left, it takes 700' in capsys.readouterr().out
  assert measured(step('toy of another', smoke=()), smoke=True)[2:] == [('device', 'done')]
  with pytest.raises(Mistake, match='JAX found no accelerator, only a CPU; --smoke'):
    measured(DONE, device_name='a CPU', platform='cpu')


def test_a_row_that_was_cut_off_is_measured_again(measured, tmp_path):
  measured(DONE)
  file = tmp_path / 'results' / accelerator.RESULTS
  lines = file.read_text().splitlines()
  file.write_text(f'{lines[0]}\n{lines[1][:40]}\n')
  assert [name for name, _ in measured(DONE)] == ['device', 'device', 'done']


def test_the_plan(capsys, monkeypatch, tmp_path):
  flags.FLAGS.mark_as_parsed()
  monkeypatch.setattr(accelerator.subprocess, 'Popen', None)  # nothing is run
  with flagsaver.flagsaver(**{'dry-run': True}, commit='abc', output=str(tmp_path / 'none')):
    accelerator.main([])
  text = capsys.readouterr().out
  assert not (tmp_path / 'none').exists()
  steps = [each for each in accelerator.STEPS if each.name in text]
  assert steps[0] is accelerator.DEVICE and len(steps) >= len(accelerator.STEPS) - 1
  assert 'later     60   3600  the rest of latency' in text
  assert text.index('ceilings.json') < text.index('tests/gpu') < text.index('benchmarks.kernels')
  assert text.index('--case=cart_d1024') < text.index('--case=crt_d5_c1120')
  assert len({each.name for each in accelerator.STEPS}) == len(accelerator.STEPS)
  for each in accelerator.STEPS:
    assert 0 < each.takes < each.limit and importlib.util.find_spec(each.module)


def test_predictions_compare_with_the_same_jax_only():
  row = dict.fromkeys(kernels.COMPARED, 37)
  predicted = row | dict(kernels_per_token=40)
  known = {'decode crt': {'h100, jax 0': {}, row_label('h100'): predicted}}
  assert kernels.prediction(known, 'crt', 'NVIDIA H100 80GB HBM3') is predicted
  assert kernels.prediction(known, 'crt', 'NVIDIA H200') is None
  assert kernels.prediction({'decode crt': {'h100, jax 0': {}}}, 'crt', 'NVIDIA H100') is None
  assert kernels.compare(row, predicted)['kernels_per_token'] == dict(here=37, predicted=40)
  assert kernels.compare(row, None) == 'no prediction for this device and version of JAX'


@pytest.mark.slow
def test_everything_runs_as_a_toy(tmp_path):
  """Each step of the table that a CPU can do, in processes as they are run on a GPU."""
  command = [sys.executable, '-m', 'benchmarks.accelerator', '--smoke', f'--output={tmp_path}']
  subprocess.run(command, check=True, timeout=580)
  rows = accelerator.read(tmp_path / accelerator.RESULTS)
  steps = accelerator.order(accelerator.STEPS, [], dict(smoke=True))
  names = [accelerator.DEVICE.name, *(each.name for each in steps)]
  assert [(row['step'], row['outcome']) for row in rows] == [(name, 'done') for name in names]
  assert len(names) >= 7
  files = [file.relative_to(tmp_path) for file in tmp_path.rglob('*') if file.is_file()]
  assert len(files) <= 8 and all(len(file.parts) <= 2 for file in files)
  found = {name: value for row in rows for name, value in row['found'].items()}
  assert found['ceilings.json']['copy_bytes_per_second'] > 1e8
  assert found['kernels.json']['decoding']['plain']['kernels_run_per_token'] > 0
  assert found['train.json']['tokens_per_second'] > 0
