"""Rows on disk: appended, cut back on resume, and the same in TensorBoard's format."""

import base64
import importlib.util
import io
import json
import sys
import time
import types

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from crt_jax.runs import metrics
from crt_jax.training import report, terminal

CONFIG = {'model': {'name': 'crt', 'width': 64, 'tied': True}, 'seed': 42}


def write(path, steps, first_step=0, track=''):
  writer = metrics.MetricsWriter(path, CONFIG, first_step, track)
  for step in steps:
    writer.write({'step': step, 'loss': step / 2})
  writer.close()


def lines(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_rows_after_the_restored_step_are_cut(tmp_path):
  write(tmp_path, [1, 2, 3, 4])
  write(tmp_path, [3, 4, 5], first_step=2)
  assert [row['step'] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_row_that_a_kill_cut_short_is_removed(tmp_path):
  write(tmp_path, [1, 2])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 3, "lo')
  write(tmp_path, [3], first_step=2)
  assert [row['step'] for row in lines(tmp_path)] == [1, 2, 3]


def test_nothing_to_cut_leaves_the_file_as_it_is(tmp_path):
  write(tmp_path, [1, 2])
  before = (tmp_path / 'metrics.jsonl').stat()
  metrics.cut_back(tmp_path / 'metrics.jsonl', 2)
  after = (tmp_path / 'metrics.jsonl').stat()
  assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def events(folder):
  """The events of a folder, by the record format: length, its checksum, data, its checksum."""
  for file in sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns):
    data, at = file.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      yield event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      at += 12 + size + 4


def summaries(folder):
  """(step, tag) -> the value of it."""
  return {(e.step, v.tag): v for e in events(folder / 'tensorboard') for v in e.summary.value}


def test_tensorboard_has_the_same_numbers_and_knows_the_restart(tmp_path):
  write(tmp_path, [1, 2], first_step=0)
  write(tmp_path, [2], first_step=1)
  found = summaries(tmp_path)
  assert {step: found[step, 'train/loss'].simple_value for step in (1, 2)} == {1: 0.5, 2: 1.0}
  starts = [e for e in events(tmp_path / 'tensorboard') if e.HasField('session_log')]
  assert [e.step for e in starts] == [1, 2]  # TensorBoard drops what it had from this step on


def test_tags_are_grouped_and_a_list_is_numbered():
  row = dict(step=3, loss=1.0, mfu=0.5, depth=2, residual=[7.0, 8.0], validation_perplexity=9.0)
  assert metrics.tagged(row) == {
    'train/loss': 1.0,
    'speed/mfu': 0.5,
    'recurrence/depth': 2,
    'recurrence/residual_1': 7.0,
    'recurrence/residual_2': 8.0,
    'validation/perplexity': 9.0,
  }


def test_tensorboard_shows_config_scores_sample_and_figures(tmp_path):
  (tmp_path / 'convergence.png').write_bytes(PNG)
  writer = metrics.MetricsWriter(tmp_path, CONFIG, 0)
  writer.conclude(4, {'evaluation/perplexity': 7.0}, 'Call me', [tmp_path / 'convergence.png'])
  writer.close()
  found = summaries(tmp_path)
  assert '"width": 64' in found[0, 'config/text_summary'].tensor.string_val[0].decode()
  assert found[4, 'evaluation/perplexity'].simple_value == 7.0
  assert 'Call me' in found[4, 'sample/text_summary'].tensor.string_val[0].decode()
  image = found[4, 'figures/convergence'].image
  assert (image.width, image.height, image.encoded_image_string) == (1, 1, PNG)
  started = HParamsPluginData.FromString(
    found[4, '_hparams_/session_start_info'].metadata.plugin_data.content
  ).session_start_info
  assert started.hparams['model.width'].number_value == 64
  assert started.hparams['model.name'].string_value == 'crt'
  declared = HParamsPluginData.FromString(
    found[4, '_hparams_/experiment'].metadata.plugin_data.content
  ).experiment
  assert [one.name.tag for one in declared.metric_infos] == ['evaluation/perplexity']


class Library(types.ModuleType):
  """Stands in for a tracker: notes its calls."""

  def __init__(self, name):
    super().__init__(name)
    self.calls = []

  def init(self, **options):
    self.calls.append(('init', options))
    return self

  def Image(self, path):
    return f'image of {path}'

  def __getattr__(self, name):
    return lambda *given, **named: self.calls.append((name, given, named))


@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_a_tracker_has_the_same_rows_and_goes_on_under_the_same_id(tmp_path, monkeypatch, name):
  library = Library(name)
  monkeypatch.setitem(sys.modules, name, library)
  write(tmp_path, [1, 2], track=name)
  write(tmp_path, [3], first_step=2, track=name)
  first, again = (call[1] for call in library.calls if call[0] == 'init')
  assert first == again and first['resume'] == 'allow' and first['config'] == CONFIG
  logged = [call for call in library.calls if call[0] == 'log']
  assert [call[1][0]['train/loss'] for call in logged] == [0.5, 1.0, 1.5]
  if name == 'wandb':  # whose own steps cannot go back to a checkpoint
    assert first['id'] and [call[1][0]['step'] for call in logged] == [1, 2, 3]
  else:
    assert first['name'] and [call[2]['step'] for call in logged] == [1, 2, 3]
  assert [call[0] for call in library.calls].count('finish') == 2


@pytest.mark.skipif(not importlib.util.find_spec('wandb'), reason='needs the extra wandb')
def test_wandb_itself_keeps_both_parts_of_a_run_offline(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  write(tmp_path, [1, 2], track='wandb')
  write(tmp_path, [3], first_step=2, track='wandb')
  kept = list(tmp_path.glob('wandb/offline-run-*/run-*.wandb'))
  assert len(kept) == 2 and len({file.name for file in kept}) == 1  # of one id
  assert all(file.stat().st_size > 0 for file in kept)


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch):
  monkeypatch.delitem(sys.modules, 'wandb', raising=False)
  monkeypatch.setattr(metrics.tracking.importlib.util, 'find_spec', lambda name: None)
  line = r"--track=wandb needs wandb; .*pip install -e '.*\[wandb\]'"
  with pytest.raises(ValueError, match=line):
    metrics.tracking.check('wandb')


PNG = base64.b64decode(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=='
)

ROW = dict(
  step=5,
  loss=2.5,
  perplexity=12.0,
  learning_rate=1e-3,
  grad_norm=0.5,
  tokens_per_second=123_456.0,
  mfu=0.0,
)


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_bar_on_a_terminal_and_plain_lines_elsewhere(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  shown = {}
  for stream in (io.StringIO(), Terminal()):
    monkeypatch.setattr(sys, 'stdout', stream)
    line = terminal.ProgressLine(steps=10, first_step=0)
    line.report(ROW, seconds_left=60.0)
    line.close()
    shown[stream.isatty()] = stream.getvalue()
  text = 'step 5/10  loss 2.5000  perplexity 12.00'
  assert shown[False].startswith(text) and shown[False].count('\n') == 1
  assert text in shown[True] and '━' in shown[True] and '0:01:00 left' in shown[True]


def test_the_bar_says_why_it_stands_still(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setattr(sys, 'stdout', Terminal())
  line = terminal.ProgressLine(steps=10, first_step=0)
  line.report(ROW, seconds_left=60.0)
  line.validating()
  line.close()
  assert '5/10' in sys.stdout.getvalue() and 'validating' in sys.stdout.getvalue()


def test_a_bar_moves_with_every_step_and_a_silent_minute_ends_with_a_line(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  now = [0.0]
  monkeypatch.setattr(terminal.time, 'monotonic', lambda: now[0])
  for stream in (io.StringIO(), Terminal()):
    monkeypatch.setattr(sys, 'stdout', stream)
    line = terminal.ProgressLine(steps=10, first_step=0)
    for step, now[0] in ((1, 100.0), (2, 130.0), (3, 170.0)):
      line.advance(step, 42.0 if step > 1 else None)
    line.close()
    if stream.isatty():
      assert '3/10' in stream.getvalue() and '0:00:42 left' in stream.getvalue()
    else:
      assert stream.getvalue() == 'step 1/10\nstep 3/10  0:00:42 left\n'


def test_an_estimate_begins_with_the_work_it_is_of(monkeypatch, capsys):
  """Reading and training a vocabulary, which came before, say nothing of tokenising."""
  now = [0.0]
  monkeypatch.setattr(terminal.time, 'monotonic', lambda: now[0])
  with terminal.Stages() as report:
    report('training a vocabulary of 9 tokens', 0, 1)
    now[0] = 3000.0
    report('tokenising', 0, 100)
    now[0] = 3060.0
    report('tokenising', 20, 100)
  assert capsys.readouterr().out == (
    'training a vocabulary of 9 tokens ...\ntokenising ...\ntokenising 20%, about 0:04:00 left\n'
  )


def test_the_bar_of_a_task_without_a_measure_moves(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setattr(sys, 'stdout', Terminal())
  with terminal.Stages() as report:
    report('training a vocabulary of 9 tokens', 0, 0)
    time.sleep(0.3)  # it is drawn ten times a second
  bars = {line for line in sys.stdout.getvalue().split('\r') if '━' in line}
  assert len(bars) > 1


def test_a_duration_of_days_is_in_days():
  assert [terminal.duration(x) for x in (3725, 86_400, 200_000, 3e7)] == [
    '1:02:05', '24:00:00', '2.3 days', '347 days'
  ]  # fmt: skip


def test_progress_line_says_it_all():
  row = ROW | dict(mfu=0.412, validation_perplexity=13.5)
  text = terminal.describe(row, seconds_left=3725)
  assert text == (
    'loss 2.5000  perplexity 12.00  lr 1.00e-03  grad norm 0.500  123k tokens/s  MFU 41.2%  '
    'ETA 1:02:05\n  validation perplexity 13.50'
  )


def test_clock_counts_only_what_it_is_entered_for(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(report.time, 'perf_counter', lambda: now[0])
  clock = report.Clock(seconds=10.0)
  now[0] = 5.0
  assert clock.seconds == 10.0
  with clock:
    now[0] = 7.0
    assert clock.seconds == 12.0
  now[0] = 100.0
  assert clock.seconds == 12.0


def test_perplexity_does_not_overflow():
  assert report.perplexity(0.0) == 1.0
  assert report.perplexity(1e4) == pytest.approx(report.perplexity(700.0))


def test_a_number_that_is_not_finite_is_null(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, CONFIG, 0)
  writer.write({'step': 1, 'loss': 0.5, 'validation_perplexity': float('nan'), 'x': [float('inf')]})
  writer.close()
  assert lines(tmp_path) == [{'step': 1, 'loss': 0.5, 'validation_perplexity': None, 'x': [None]}]
