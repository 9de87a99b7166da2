"""Compiling ahead of time, at toy size: what is chosen, how it is split, what is kept."""

import json
import signal

import jax
import pytest
from absl import app
from absl.testing import flagsaver

from benchmarks import aot
from tests.training.tiny import tiny_config

TINY = 'tests/training/tiny.py'


def test_names_and_patterns_choose_in_their_order():
  every = dict.fromkeys(['a_D=1,C=2', 'a_D=3', 'b'])
  assert aot.chosen(every, ['b', 'a*', '*']) == ['b', 'a_D=1,C=2', 'a_D=3']
  with pytest.raises(app.UsageError, match='--only=c: there are a_D=1,C=2, a_D=3, b'):
    aot.chosen(every, ['a*', 'c'])


def test_every_training_config_is_known():
  every = aot.specs()
  assert {'quickstart', 'crt_341m-D=5', *aot.SCALED} <= every.keys()
  assert not any(name.startswith('latency') for name in every)


@pytest.mark.parametrize(
  'devices, mesh, batch',
  [
    (4, (1, 4, 1), 8),
    (16, (1, 8, 2), 8),  # two heads are split
    (32, (1, 32, 1), 32),  # they cannot be split in four, so the batch grows
  ],
)
def test_rows_then_heads_are_split(devices, mesh, batch):
  sizes, rows = aot.plan(tiny_config(), devices)
  assert (tuple(sizes.values()), rows) == (mesh, batch)


def test_a_compiler_that_crashes_leaves_a_row():
  assert aot.apart(signal.raise_signal, signal.SIGSEGV) == {'error': 'the compiler crashed'}
  with pytest.raises(ValueError, match='its process ended with code -9'):
    aot.apart(signal.raise_signal, signal.SIGKILL)
  with pytest.raises(ValueError, match='invalid literal'):
    aot.apart(int, 'x')
  assert aot.apart(dict, [('fits', True)]) == {'fits': True}


CRASH = {'error': 'the compiler crashed'}


@pytest.mark.parametrize(
  'step, layer, row',
  [
    ({'fits': True}, CRASH, {'fits': True, 'gather': 'step'}),
    (CRASH, {'fits': True}, {'fits': True, 'gather': 'layer', 'step': CRASH['error']}),
    ({'fits': False}, {'fits': True}, {'fits': True, 'gather': 'layer', 'step': 'does not fit'}),
    (CRASH, {'fits': False}, CRASH | {'gather': 'step'}),
  ],
)
def test_by_layer_only_what_can_be_had_in_no_other_way(step, layer, row, monkeypatch):
  found = {'step': step, 'layer': layer}
  monkeypatch.setattr(aot, 'apart', lambda job, spec, target, gather: found[gather])
  assert aot.result_of(TINY, 'v5e:4x4') == row


def test_what_is_there_is_kept(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(aot, 'specs', lambda: {'first': TINY, 'tiny': TINY})
  file = tmp_path / 'aot.json'
  common = dict(output=str(file), scaling='false', slices='false')
  with flagsaver.as_parsed(**common, only='tiny', target='cpu:2,v9:1x1'):
    aot.main([])
    found = json.loads(file.read_text())
    row = found['results']['tiny']['cpu:2']
    assert row['mesh'] == {'data': 1, 'fsdp': 2, 'tensor': 1} and row['depth'] == 2
    assert row['bytes_a_device'] > row['state_bytes_a_device'] > row['state_bytes'] / 2
    assert row['sent_bytes_a_device'] > 0
    assert row['gather'] == 'step' and row['commit'] == found['origin']['commit'] != ''
    said = capsys.readouterr().out
    assert 'GiB a device' in said and 'v9:1x1: left out' in said
    row['sent_bytes_a_device'] = 'as it was'
    file.write_text(json.dumps(found))
  with flagsaver.as_parsed(**common, only='', target='cpu:2'):
    aot.main([])
  again = json.loads(file.read_text())['results']
  assert list(again) == ['first', 'tiny']
  assert again['tiny']['cpu:2']['sent_bytes_a_device'] == 'as it was'


def test_a_program_for_a_gpu_leaves_the_others_in_the_file(tmp_path, monkeypatch):
  """Whatever is asked for; a name that no version knows any more stays too."""
  monkeypatch.setattr(aot, 'is_there', lambda target: True)
  monkeypatch.setattr(aot, 'run_job', lambda source, target: dict(predicted_us={'in_graph': 1.0}))
  monkeypatch.setattr(aot, 'describe', str)
  file = tmp_path / 'gpu.json'
  file.write_text(json.dumps({'results': {'decode of_old': {'h100': {}}}}))
  common = dict(output=str(file), target='h100', scaling='false', slices='false', claims='')
  for asked in (dict(decode='transformer_n6', train=''), dict(decode='', train='cart_d1024')):
    with flagsaver.as_parsed(**common, **asked):
      aot.main([])
  found = json.loads(file.read_text())
  assert list(found['results']) == ['decode transformer_n6', 'train cart_d1024', 'decode of_old']
  [(label, row)] = found['results']['train cart_d1024'].items()
  assert label == f'h100, jax {jax.__version__}' and row['jax'] == jax.__version__
  assert {'decode crt_d1_c2048', 'train cart_d1024'} <= set(found['configs'])
  with flagsaver.as_parsed(**common, decode='x', train=''):
    with pytest.raises(app.UsageError, match='--decode=x: there are .*decode transformer_n6'):
      aot.main([])
  with flagsaver.as_parsed(**common | dict(claims='conversion'), decode='', train=''):
    aot.main([])
  found = json.loads(file.read_text())['results']
  assert list(found)[2:4] == ['claim conversion/wiki-begun', 'claim conversion/wiki-converted']
  with flagsaver.as_parsed(**common | dict(claims='decode_speed'), decode='', train=''):
    with pytest.raises(app.UsageError, match='--claims=decode_speed: there are '):
      aot.main([])
