"""The loop on a tiny CRT: what a run leaves, resuming, divergence, and refusals before anything is
compiled."""

import dataclasses
import json
import shutil
import time
import types

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from crt_jax import schema, sharding
from crt_jax.cluster import preemption
from crt_jax.cluster.watchdog import Watchdog
from crt_jax.data import tokenizers
from crt_jax.models import device_defaults
from crt_jax.runs import checkpoint, workdir
from crt_jax.training import ending, finish, loop, report, startup
from crt_jax.training.profile import Profile
from tests.training.tiny import (
  PLAIN,
  assert_same_bits,
  contents,
  params_of,
  refuse,
  rows_of,
  stop_after,
  timeless,
  tiny_config,
  train,
)

pytestmark = pytest.mark.usefixtures('caches')
FULL = {'eval.sequential': True, 'train.telemetry_every': 6, 'eval.jacobian_iterations': 2}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """One uninterrupted run that the tests below compare with."""
  path = tmp_path_factory.mktemp('runs') / 'uninterrupted'
  train(tiny_config(**FULL), path)
  return path


def test_a_run_leaves_its_records(finished):
  rows = rows_of(finished)
  assert [row['step'] for row in rows] == [1, 3, 4, 6, 8, 9, 12]
  assert list(rows[0])[:7] == [
    'step', 'loss', 'cross_entropy', 'perplexity', 'learning_rate', 'grad_norm', 'tokens_per_second'
  ]  # fmt: skip
  for row in rows:
    assert row['depth'] in (1, 2)
    assert row['perplexity'] == pytest.approx(np.exp(row['cross_entropy']))
    assert 0 < row['input_seconds'] < row['training_seconds']
    assert ('validation_perplexity' in row) == (row['step'] in (4, 8, 12))
    assert ('validation_jacobian_radius' in row) == (row['step'] in (4, 8, 12))
    assert ('state_gradient_norm' in row) == (row['step'] in (6, 12))
    if 'state_gradient_norm' in row:
      assert len(row['state_gradient_norm']) == len(row.get('residual', [])) == row['depth'] - 1
  assert rows[-1]['loss'] < rows[0]['loss']
  saved = json.loads((finished / 'config.json').read_text())
  assert saved['config']['model']['vocab_size'] == 256  # references are resolved
  assert saved['origin']['versions']['jax']
  results = json.loads((finished / 'evaluation.json').read_text())['results']
  assert {(row['form'], row['depth']) for row in results['sampled']} == {
    ('parallel', 2), ('sequential', None)
  }  # fmt: skip
  at_the_end = rows[-1]['validation_jacobian_norm']
  assert results['jacobian']['moby_dick']['jacobian_norm'] == pytest.approx(at_the_end, rel=1e-5)
  for name in ('figures/training.svg', 'figures/convergence.png', 'samples/step_12.txt'):
    assert (finished / name).stat().st_size > 0
  assert list((finished / 'tensorboard').iterdir())


def test_parameters_come_back_onto_a_mesh_for_decoding(finished):
  """The run lay on eight replicas, as its sharding.txt says; two devices share its parameters."""
  layout = (finished / 'sharding.txt').read_text()
  assert layout.startswith('mesh of 8 devices: data 8') and 'embedding/weight' in layout
  whole = checkpoint.load_params(finished)[1]
  split = checkpoint.load_params(finished, mesh=sharding.tensor_mesh(2))[1]
  jax.tree.map(np.testing.assert_array_equal, split, whole)
  assert split['embedding']['weight'].sharding.spec == PartitionSpec('tensor', None)
  with pytest.raises(ValueError, match=r'heads, 2\) is not divisible by mesh.tensor=4'):
    checkpoint.load_params(finished, mesh=sharding.tensor_mesh(4))


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
  """Changes that train on a mixture of two texts and score it as CART does."""
  folder = tmp_path_factory.mktemp('texts')
  for name, text in (('b', 'whale '), ('a', 'ship! ')):
    (folder / f'{name}.txt').write_text(text * 200)
  with (config := tiny_config()).unlocked():
    config.data.update(corpus='mixture', interleave='b:2, a:1', chunk_tokens=16)
    config.data.sources = {n: schema.source(files=str(folder / f'{n}.txt')) for n in 'ab'}
    config.data.sampling = 'in_order'
    config.eval.update(sample='first', windows=5, whole=True)
    config.train.update(steps=4, log_every=2, eval_every=2)
    config.model.update(depth_min=0, dropout=0.0)
  return folder, config


def test_a_step_is_dispatched_before_the_metrics_of_the_last_one_are_read(monkeypatch):
  """So the device never waits for the host; and waiting for input is timed apart."""
  said = []

  class Model:
    def depth_at(self, seed, step):
      return None

  class Reporter:
    def read(self, step, depth, metrics, input_seconds):
      said.append(f'read {metrics}')
      assert input_seconds >= step * 0.02
      return {}

    def advance(self, step):
      pass

    def validating(self):
      pass

    def write(self, row, always=False):
      pass

  def compiled(depth, state, batch, measures):
    said.append(f'dispatch {batch}')
    return state, batch

  def feed():
    for number in range(1, 5):
      time.sleep(0.02)
      yield number

  train = dict(steps=4, eval_every=9, checkpoint_every=9, telemetry_every=0)
  run = types.SimpleNamespace(
    config=ml_collections.ConfigDict(dict(seed=0, train=train)), model=Model(), state=None,
    first_step=0, clock=report.Clock(), input_clock=report.Clock(), place=lambda batch: batch,
    feed=feed(), compiled=compiled, save=lambda _: None,
    checkpoints=types.SimpleNamespace(check=lambda: None),
  )  # fmt: skip
  monkeypatch.setattr(loop, 'validate', lambda run: {})
  stop = types.SimpleNamespace(requested=lambda step: False)
  loop.run_steps(run, Reporter(), stop, Watchdog(0, 0), Profile((0, 0), None))
  expected = 'dispatch 1, dispatch 2, read 1, dispatch 3, read 2, dispatch 4, read 3, read 4'
  assert said == expected.split(', ')
  assert run.clock.seconds >= run.input_clock.seconds >= 4 * 0.02


def test_a_run_on_a_mixture_reports_every_set(mixture, tmp_path, capsys):
  _, config = mixture
  train(config, tmp_path)
  rows = rows_of(tmp_path)
  by_set = [f'validation_{name}_{of}' for of in 'ba' for name in ('cross_entropy', 'perplexity')]
  for row in rows[1:]:
    assert set(by_set) <= set(row) and 'validation_perplexity' not in row
    mean = np.mean([row[f'validation_cross_entropy_{of}'] for of in 'ba'])
    assert row['validation_cross_entropy'] == pytest.approx(mean)
  results = json.loads((tmp_path / 'evaluation.json').read_text())['results']
  assert [(r['set'], r['protocol'], r['targets']) for r in results['sampled']] == [
    ('b', 'first', 80), ('a', 'first', 80)
  ]  # fmt: skip
  for record in results['sampled']:
    of_the_end = rows[-1][f'validation_cross_entropy_{record["set"]}']
    assert record['cross_entropy'] == pytest.approx(of_the_end, rel=1e-6)
  said = capsys.readouterr().out
  # The card comes before compiling, and what it gave before the first step.
  parts = ('epochs ', 'compiling     K=2 ...', 'memory ', 'evaluation ', 'step 1/4 ', 'next:')
  assert sorted(parts, key=said.index) == list(parts)
  assert 'bits per byte: ' in said and ' on a, by K=2 parallel passes' in said
  assert 'first windows' in said and 'validation perplexity b ' in said
  assert (tmp_path / 'figures' / 'training.png').exists()


def test_a_run_does_not_go_on_when_a_source_changed(mixture, tmp_path, monkeypatch):
  folder, config = mixture
  with monkeypatch.context() as patch, pytest.raises(SystemExit):
    stop_after(patch, 2)
    train(config, tmp_path)
  (folder / 'a.txt').write_text('boat: ' * 200)
  with pytest.raises(ValueError, match='the corpus is not the one this run began with'):
    train(config, tmp_path)
  (folder / 'a.txt').write_text('ship! ' * 200)
  train(config, tmp_path)


def test_each_set_has_its_own_figure():
  rows = [{'set': name, 'depth': r} for name in ('tiny', 'wiki') for r in (2, 6)]
  results = ending.by_set({'sampled': rows, 'data': {}})
  assert list(results) == ['tiny', 'wiki'] and results['wiki']['sampled'] == rows[2:]
  alone = {'sampled': rows[:2], 'data': {}}
  assert ending.by_set(alone) == {'': alone}


def test_metrics_stay_where_checkpoints_are_gone(finished, tmp_path):
  path = tmp_path / 'run'
  shutil.copytree(finished, path)
  shutil.move(path / 'checkpoints', tmp_path)
  (path / 'finished.json').unlink()
  with pytest.raises(ValueError, match='its metrics reach step 12 and its checkpoints are gone'):
    train(tiny_config(**FULL), path)
  assert rows_of(path) == rows_of(finished)


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys, monkeypatch):
  monkeypatch.setattr(startup.step, 'compile_steps', refuse)
  before = contents(finished)
  train(tiny_config(**FULL), finished)
  assert 'finished, at step 12' in capsys.readouterr().out
  assert contents(finished) == before


@pytest.mark.parametrize('step', [4, 7])
def test_a_stopped_run_continues_to_the_same_bits(finished, tmp_path, monkeypatch, capsys, step):
  """At a step that is a checkpoint anyway, and between two."""
  config = tiny_config(**FULL)
  with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
    stop_after(patch, step)
    train(config, tmp_path)
  assert stopped.value.code == 75
  train(config, tmp_path)
  assert f'continuing after step {step}' in capsys.readouterr().out
  assert_same_bits(params_of(tmp_path), params_of(finished))
  assert list(map(timeless, rows_of(tmp_path))) == list(map(timeless, rows_of(finished)))
  assert rows_of(tmp_path)[-1]['training_seconds'] > rows_of(tmp_path)[1]['training_seconds']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'optimizer.learning_rate': 0.1}, r'optimizer.learning_rate \(was 0.003, now 0.1\).*--fork'),
    ({'train.steps': 20, 'seed': 1}, r'seed \(was 42, now 1\), train.steps \(was 12, now 20\)'),
    ({'eval.depths': (1, 2)}, r'eval.depths \(was \[\], now \[1, 2\]\)'),
  ],
)
def test_a_changed_config_is_refused_by_name(finished, monkeypatch, changes, message):
  monkeypatch.setattr(startup.step, 'compile_steps', refuse)
  before = contents(finished)
  with pytest.raises(ValueError, match=message):
    train(tiny_config(**FULL | changes), finished)
  assert contents(finished) == before


def test_a_fork_continues_with_the_changed_config(tmp_path, capsys):
  train(tiny_config(**{'train.steps': 4} | PLAIN), tmp_path)
  changes = {'train.steps': 6, 'optimizer.learning_rate': 1e-4}
  train(tiny_config(**changes | PLAIN), tmp_path, fork=True)
  assert 'continuing after step 4' in capsys.readouterr().out
  rows = rows_of(tmp_path)
  assert [row['step'] for row in rows] == [1, 3, 4, 6]
  assert rows[-1]['learning_rate'] == pytest.approx(1e-4)
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['config']['train']['steps'] == 6
  assert saved['forks'][0]['changed']['train.steps'] == [4, 6]
  assert (tmp_path / 'finished.json').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.width': 15}, r'model.width=15 must be divisible by model.heads=2'),
    ({'model.vocab_size': 100}, r'model.vocab_size=100 leaves token ids outside'),
    ({'data.batch_size': 12}, r'data.batch_size=12 must be divisible by 8'),
    ({'data.sequence_length': 10**7}, r'data.sequence_length=10000000 needs'),
    ({'data.corpus': 'files', 'data.files': '/nowhere/*.txt'}, r'data.files'),
    ({'mesh.fsdp': 3}, r'mesh.fsdp=3'),
    (
      {'model.attention_kernel': 'splash', 'model.dropout': 0.0},
      r"model.attention_kernel='splash' needs a TPU, and JAX found cpu",
    ),
    ({'train.steps': 0}, r'train.steps=0 must be at least 1'),
    ({'eval.depths': (0,)}, r'eval.depths='),
    ({'eval.sample': 'last'}, r"eval.sample='last' must be one of 'random', 'first'"),
    ({'eval.dtype': 'float64'}, r"eval.dtype='float64' must be one of"),
    ({'eval.windows': 0}, r'eval.windows=0 must be at least 1'),
    ({'eval.jacobian_iterations': -1}, r'eval.jacobian_iterations=-1 must be 0'),
    ({'optimizer.b1': 1.0}, r'optimizer.b1='),
    ({'optimizer.learning_rate': float('inf')}, r'optimizer.learning_rate=inf must be a finite'),
    ({'optimizer.eps': float('inf')}, r'optimizer.eps=inf must be a finite number'),
    ({'optimizer.weight_decay': float('inf')}, r'optimizer.weight_decay=inf must be a finite'),
    ({'optimizer.clip_norm': float('nan')}, r'optimizer.clip_norm=nan must be a finite number'),
    ({'optimizer.final_learning_rate': float('inf')}, r'optimizer.final_learning_rate=inf must'),
    ({'model.convergence_weight': float('inf')}, r'model.convergence_weight=inf must be a finite'),
    ({'sample.temperature': float('inf')}, r'sample.temperature=inf must be a finite number'),
    ({'data.validation_fraction': float('nan')}, r'data.validation_fraction=nan must'),
    ({'seed': -1}, r'^seed=-1 must be at least 0'),
    ({'eval.seed': 2**32}, r'^eval.seed=4294967296 must be at most 4294967295'),
    ({'sample.seed': -1}, r'^sample.seed=-1 must be at least 0'),
    ({'sample.prompt': ''}, r"^sample.prompt='' has no token; give"),
    ({'sample.top_p': 0.0}, r'^sample.top_p=0.0 must be above 0'),
    ({'sample.temperature': -1.0}, r'^sample.temperature=-1.0 must be'),
  ],
)
def test_mistakes_are_found_before_compiling_and_leave_no_directory(
  tmp_path, monkeypatch, changes, message
):
  monkeypatch.setattr(startup.step, 'compile_steps', refuse)
  with pytest.raises(ValueError, match=message) as caught:
    train(tiny_config(**changes), tmp_path / 'run')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


def test_what_is_auto_is_decided_for_the_device(tmp_path, monkeypatch):
  asked, decide = [], device_defaults.decide
  monkeypatch.setattr(device_defaults, 'decide', lambda c, d: asked.append(d) or decide(c, d))
  train(tiny_config(**PLAIN | {'train.steps': 1}), tmp_path)
  assert asked[0] == jax.devices()[0]


def test_a_run_that_is_computed_in_another_way_says_so(tmp_path, monkeypatch, capsys):
  config, decide = tiny_config(**PLAIN | {'train.steps': 2}), device_defaults.decide
  with monkeypatch.context() as patch:
    stop_after(patch, 1)
    with pytest.raises(preemption.Preempted):
      train(config, tmp_path)
  monkeypatch.setattr(
    device_defaults, 'decide', lambda c, d: dataclasses.replace(decide(c, d), remat='layer')
  )
  train(config, tmp_path)
  said = ''.join(capsys.readouterr())
  assert 'not with the same bits: model.remat was none, is layer\n' in said


def test_a_vocabulary_larger_than_the_tokenizer_ends_in_a_readable_sample(tmp_path, capsys):
  """A fresh model at a high temperature draws every id; those without a text are left out."""
  sample = {'sample.temperature': 50.0, 'sample.top_k': 0, 'sample.top_p': 1.0}
  steps = {'train.steps': 1, 'sample.num_tokens': 40, 'model.vocab_size': 512}
  train(tiny_config(**PLAIN | sample | steps), tmp_path)
  assert (tmp_path / 'samples' / 'step_1.txt').read_text().startswith('The ')
  assert 'the tokenizer has 256 tokens' in capsys.readouterr().err


def test_a_model_without_a_sequential_form_ends_without_a_sample(tmp_path, capsys):
  train(tiny_config(**PLAIN | {'train.steps': 1, 'model.cumulative': True}), tmp_path)
  assert 'no sample: the model has no sequential form' in capsys.readouterr().out
  assert workdir.finished_step(tmp_path) == 1
  assert not (tmp_path / 'samples').exists() and (tmp_path / 'evaluation.json').exists()


def test_another_tokenizer_is_not_that_of_the_checkpoint(finished, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(finished, copy)
  tokenizers.ByteTokenizer(eos=256).save(copy / 'tokenizer')
  with pytest.raises(ValueError, match='is not the tokenizer that the checkpoint of step 12'):
    finish.evaluate_checkpoint(copy)


def test_the_cost_is_said_before_the_first_step(tmp_path, capsys):
  train(tiny_config(**PLAIN | {'train.steps': 1}), tmp_path)
  card, _, rest = capsys.readouterr().out.partition('step 1/1')
  names = [line.split('  ')[0] for line in card.splitlines()]
  first = names.index('model')  # behind what tokenising says, where nobody has
  assert names[first:][:6] == ['model', 'training', 'data', 'epochs', 'FLOPs/token', 'state']
  assert names.index('state') < names.index('memory'), 'memory is known when it is compiled'
  parameters = sum(x.size for x in params_of(tmp_path).values())
  assert f'crt, {parameters:,} parameters' in card and ' MiB a device, compiled' in card
  assert 'tokens/s  ETA' in rest  # and no share of a peak, which is not known of a CPU


def test_fewer_steps_than_were_taken_are_refused(tmp_path):
  train(tiny_config(**{'train.steps': 2} | PLAIN), tmp_path)
  with pytest.raises(ValueError, match='train.steps=1 but .* is at step 2 already'):
    train(tiny_config(**{'train.steps': 1} | PLAIN), tmp_path, fork=True)
  # A fork that fails leaves the run as it was: finished.
  assert json.loads((tmp_path / 'config.json').read_text())['config']['train']['steps'] == 2
  assert workdir.finished_step(tmp_path) == 2


def test_a_checkpoint_is_evaluated_again(finished, tmp_path, capsys, monkeypatch):
  copy = tmp_path / 'copy'
  shutil.copytree(finished, copy)
  before = json.loads((copy / 'evaluation.json').read_text())['results']
  (copy / 'evaluation.json').unlink()
  finish.evaluate_checkpoint(copy)
  assert 'checkpoint of step 12' in capsys.readouterr().out
  after = json.loads((copy / 'evaluation.json').read_text())['results']
  for old, new in zip(before['sampled'], after['sampled'], strict=True):
    assert (new['form'], new['depth']) == (old['form'], old['depth'])
    assert new['cross_entropy'] == pytest.approx(old['cross_entropy'], rel=1e-5)
  with pytest.raises(ValueError, match='no checkpoint here'):
    finish.evaluate_checkpoint(tmp_path)
  with pytest.raises(ValueError, match=r'nowhere: no checkpoint here \(no such directory\); give'):
    finish.evaluate_checkpoint(tmp_path / 'nowhere')
