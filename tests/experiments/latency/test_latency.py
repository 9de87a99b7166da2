"""The latency bench: what it counts, what it refuses, and that it goes on where it stopped."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from absl import flags
from absl.testing import flagsaver

from crt_jax import decoding
from crt_jax.cli import config_files
from crt_jax.cli.user_errors import Mistake
from experiments.latency import __main__ as entry_point
from experiments.latency import decoder as timing
from experiments.latency import machine, page, rows
from experiments.latency.launches import launches
from tests.contract.models import model_of

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def config():
  return config_files.load(str(ROOT / 'configs' / 'latency_smoke.py'))


def compiled_text(function, *arguments):
  return jax.jit(function).lower(*arguments).compile().as_text()


def test_launches_count_loops_as_often_as_they_run():
  x = jnp.ones((64, 64))

  def scan(length):
    return lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=length)[0]

  short, long = (launches(compiled_text(scan(n), x)) for n in (3, 10))
  assert long > short and (long - short) % 7 == 0
  assert launches(compiled_text(lambda x: x @ x, x)) == 1

  def endless(x):
    return jax.lax.while_loop(lambda x: jnp.max(x) < 1e9, lambda x: x @ x, x)

  with pytest.raises(ValueError, match='a loop of unknown length'):
    launches(compiled_text(endless, x))


def test_a_decoder_times_every_token_once():
  model, params = timing.random_params(model_of('crt'), 'bfloat16')
  assert params['output']['weight'].dtype == jnp.bfloat16
  counts = {}
  for dispatch in (timing.PYTHON, 1, 4):
    point = timing.Point(2, 3, 'bfloat16', dispatch)
    decoder = timing.Decoder(model, params, point, 16, decoding.Sampling(temperature=0))
    seconds = decoder.time(8)
    assert len(seconds) == 8 // point.call_tokens and min(seconds) > 0
    assert decoder._state[0].position_B.tolist() == [11, 11]
    decoder.reset()
    assert decoder._state[0].position_B.tolist() == [3, 3]
    counts[dispatch] = decoder.launches
    assert decoder.first_token('parallel') > 0
    assert decoder.draw(tokens=4) > 0
  # In a chunk a token costs the same kernels as alone, and the two of the loop around it.
  assert counts[timing.PYTHON] == 0 < counts[1] == counts[4] - 2


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(batch=0), 'batch=0 must be at least 1'),
    (dict(context=0), 'context=0 must be at least 1'),
    (dict(dispatch=-1), 'dispatch=-1 must be 0'),
    (dict(dtype='int8'), "dtype='int8' must be one of"),
  ],
)
def test_points_that_cannot_be(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    timing.Point(**fields)


def test_the_machine():
  found = machine.measure(megabytes=1, repeats=2)
  assert found.bandwidth > 1e8
  assert 0 < found.launch < 1e-2 and 0 < found.dispatch < 1e-1 and 0 < found.round_trip < 1e-1
  make, read = machine._reader(1, 'float32')
  machine.read_bandwidth(1, 'float32', repeats=1)
  assert make._cache_size() == read._cache_size() == 1, 'compiled once in a process'
  assert jnp.isfinite(read(make())).all() and len(set(make()[0].tolist())) > 100
  assert machine.quantiles([2.0]) == (2.0, 2.0)
  assert machine.quantiles([float(i) for i in range(101)]) == (50.0, 95.0)


def test_one_size_of_caches_holds_every_way_of_dispatch(config):
  with config.unlocked():
    config.tokens, config.warmup, config.dispatches = 250, 10, (64, 1, 0)
  found = rows.capacity(config, context=100)
  for dispatch in config.dispatches:
    call = timing.Point(dispatch=dispatch).call_tokens
    assert found >= 100 + sum(-(-part // call) * call for part in (250, 10))


def test_rows_of_another_device_commit_or_jax_are_measured_again(tmp_path):
  lines = [
    dict(identity=d + c + j, device=d, commit=c, jax=j) for d in 'ab' for c in 'xy' for j in '12'
  ]
  lines.append(dict(identity='older', device='a', commit='y'))
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)))
  assert list(entry_point._finished(path, dict(device='a', commit='y', jax='1'))) == ['ay1']


def test_every_axis_is_varied_alone(config):
  points = rows._points(config)
  assert len(points) == len(set(points)) == 1 + 1 + 1 + 1
  first = points[0]
  assert all(sum(a != b for a, b in zip(first, point, strict=True)) <= 1 for point in points)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(batches=(0,)), 'batch=0 must be at least 1'),
    (dict(contexts=()), '--config.contexts is empty'),
    (dict(tokens=0), '--config.tokens=0 must be at least 1'),
    (dict(peers=('keras',)), "--config.peers names 'keras'; known: torch, torch_compiled"),
    (dict(prefill='fast'), "prefill='fast' must be one of"),
    (dict(temperature=-1.0), 'temperature=-1.0 must be'),
    (dict(models=dict(mine=dict(name='crt'))), 'model.vocab_size is missing'),
  ],
)
def test_refused_before_anything_is_compiled(config, changes, message):
  with config.unlocked():
    config.update(ml_collections.ConfigDict(changes))
  with pytest.raises((ValueError, Mistake), match=f'^{message}'):
    rows.plan(config, entry_point._models(config))


def test_a_peer_that_is_not_installed(monkeypatch):
  monkeypatch.setitem(rows.PEERS, 'torch', 'no_such_package:timer')
  with pytest.raises(Mistake, match="'torch' needs no_such_package: .* -m pip install -e"):
    rows.peer_timer('torch')


def test_models_of_other_configs_are_rows(config):
  with config.unlocked():
    config.extra = f'{ROOT}/configs/crt_341m.py:D=5,{ROOT}/configs/quickstart.py'
  models = entry_point._models(config)
  assert list(models) == ['crt', 'plain', 'crt_341m-D=5', 'quickstart']
  assert models['quickstart']['vocab_size'] == 1024
  with config.unlocked():
    config.only = 'plain'
  assert list(entry_point._models(config)) == ['plain']
  with config.unlocked():
    config.only = 'plane'
  with pytest.raises(Mistake, match='--config.only=plane is no model; there are crt, plain'):
    entry_point._models(config)


def test_the_smoke_run_and_its_continuation(config, tmp_path, capsys, monkeypatch):
  flags.FLAGS.mark_as_parsed()
  found = machine.Machine(bandwidth=1e10, launch=1e-6, dispatch=1e-5, round_trip=1e-5)
  monkeypatch.setattr(machine, 'measure', lambda megabytes, dtype: found)
  monkeypatch.setattr(entry_point, '_CONFIG', type('Flag', (), dict(value=config)))
  with config.unlocked():
    config.batches, config.contexts, config.dispatches = (1,), (1,), (4,)

  def run():
    with flagsaver.flagsaver(workdir=str(tmp_path)):
      entry_point.main([])
    return json.loads((tmp_path / 'latency.json').read_text()), capsys.readouterr().out

  result, text = run()
  assert [row['model'] for row in result['rows']] == ['crt', 'plain']
  row = result['rows'][0]
  assert row['tokens_per_second'] == pytest.approx(1 / row['seconds'])
  assert row['match']['model'] == 'plain'
  assert row['floor']['launches'] == pytest.approx(1e-6 * row['launches']) and row['launches'] > 9
  assert row['datasheet_share'] == 0.0, 'no guess about unknown hardware'
  assert {'device', 'versions', 'commit', 'command'} <= set(result)
  assert row['jax'] == result['versions']['jax']
  assert (tmp_path / 'latency.png').exists() and (tmp_path / 'advantage.png').exists()
  assert text.count('scan 4') == 3 and 'reads 10.0 GB/s (datasheet unknown)' in text
  # One that is stopped in its second row leaves the figure of the first.
  stopped = tmp_path / 'stopped'
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(rows, 'measure', stop_after(1, rows.measure))
    with flagsaver.flagsaver(workdir=str(stopped)):
      entry_point.main([])
  assert len(json.loads((stopped / 'latency.json').read_text())['rows']) == 1
  assert (stopped / 'latency.png').exists()
  # The same command measures nothing again; a torn line is measured anew.
  lines = (tmp_path / 'rows.jsonl').read_text().splitlines()
  (tmp_path / 'rows.jsonl').write_text(f'{lines[0]}\n{lines[1][:50]}\n')
  again, _ = run()
  pairs = zip(again['rows'], result['rows'], strict=True)
  assert [one['seconds'] == two['seconds'] for one, two in pairs] == [True, False]
  assert len((tmp_path / 'rows.jsonl').read_text().splitlines()) == 3


def stop_after(count, function):
  """The function, which is interrupted when it is called once more."""
  calls = iter(range(count))

  def stopping(*arguments):
    if next(calls, None) is None:
      raise KeyboardInterrupt
    return function(*arguments)

  return stopping


def test_the_page_has_a_column_for_all_that_some_row_has():
  row = dict.fromkeys(('context', 'batch', 'tokens_per_second', 'seconds', 'p95', 'first_token'), 1)
  row |= dict(model='crt', dtype='float32', dispatch=0, draw=0.1, share={'streamed': 0.5})
  others = {'torch_compiled': {'speedup': 1.25}, 'transformers_static': {'speedup': 1.5}}
  compared = row | {'peers': others, 'match': {'speedup': 2}}
  head, _, one, two = page.table([compared, row | {'peers': {}}]).splitlines()
  assert head.endswith(
    '| speed, its transformer = 1 | speed, `torch.compile` = 1 '
    '| speed, `transformers` with a static cache = 1 |'
  )
  assert one.endswith('| 10.0% | 2.00 | 1.25 | 1.50 |') and two.endswith('| 10.0% |  |  |  |')
  assert '| load |' not in head, 'no row has one'
  assert '| load |' in page.table([compared, compared | {'load': 0.0}])


@pytest.mark.parametrize('spec', ('latency.py', 'latency.py:paper', 'latency_cpu.py'))
def test_the_other_configs_have_a_plan(spec):
  config = config_files.load(str(ROOT / 'configs' / spec))
  with config.unlocked():
    config.peers = ()
  entries = rows.plan(config, entry_point._models(config))
  names = list(dict.fromkeys(entry.name for entry in entries))
  assert set(rows.PAPER) <= set(names)
  assert set(config.matches) | set(config.matches.values()) <= set(names)
  bases = [entry.point for entry in entries if entry.name == 'crt_d1_c2048']
  assert len(bases) == len(set(bases)) <= 13
  if spec.endswith('paper'):
    assert (config.tokens, config.warmup, bases[0].dispatch) == (10_000, 8, 100)
