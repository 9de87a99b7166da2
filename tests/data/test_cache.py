import errno
import fcntl
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from crt_jax import data, storage
from crt_jax.data import cache, token_dataset
from crt_jax.data.token_files import DamagedCache

PREPARE = """
import sys
from crt_jax import data
from crt_jax.data import token_files
{before}
data.prepare({config!r})
"""


def run(config, before=''):
  program = PREPARE.format(config=config, before=before)
  return subprocess.Popen(
    [sys.executable, '-c', program], env={**os.environ, 'PYTHONPATH': '.'}, stderr=subprocess.PIPE
  )


def contents(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def counted(monkeypatch):
  """Counts how often something is packed."""
  calls, pack = [], token_dataset.pack
  monkeypatch.setattr(
    token_dataset, 'pack', lambda *args, **kwargs: [calls.append(1), pack(*args, **kwargs)]
  )
  return calls


def test_the_work_is_done_once(settings, counted):
  config = settings()
  first = data.prepare(config)
  assert data.prepare({**config, 'sequence_length': 5, 'batch_size': 2}).folder == first.folder
  assert len(counted) == 1
  assert names(first.folder.parent) == [first.folder.name, first.folder.name + '.lock']


def test_what_decides_the_tokens_decides_the_folder(settings):
  config = settings()
  folders = {
    data.prepare({**config, **change}).folder
    for change in (
      {},
      {'separator': 'eos'},
      {'split': 'contiguous'},
      {'validation_fraction': 0.2},
      {'tokenizer': 'bpe', 'vocab_size': 260},
      {'tokenizer': 'bpe', 'vocab_size': 261},
      {'tokenizer': 'bpe', 'vocab_size': 260, 'bpe_documents': 3},
      {'tokenizer': 'bpe', 'vocab_size': 260, 'bpe_recipe': 'crt'},
    )
  }
  assert len(folders) == 8


def _flip(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(raw)


@pytest.mark.parametrize(
  'name',
  [
    'manifest.json',
    'train-00000.bin',
    'validation-00000.bin',
    'tokenizer/tokenizer.json',
    'tokenizer/crt_tokenizer.json',
  ],
)
@pytest.mark.parametrize(
  'damage',
  [_flip, lambda path: os.truncate(path, path.stat().st_size - 2), lambda path: path.unlink()],
  ids=['flipped', 'truncated', 'missing'],
)
def test_a_damaged_cache_is_built_again(settings, counted, name, damage):
  config = settings(tokenizer='bpe', vocab_size=270)
  folder = data.prepare(config).folder
  intact = contents(folder)
  damage(folder / name)
  with pytest.raises(DamagedCache):
    data.open_packed(folder)
  assert data.prepare(config).folder == folder
  assert contents(folder) == intact
  assert len(counted) == 2
  # What was damaged is kept for a job that may have mapped it; nothing else was left lying about.
  assert names(folder.parent) == [folder.name, f'{folder.name}.damaged-0', f'{folder.name}.lock']


def test_a_changed_count_is_damage(settings):
  folder = data.prepare(settings()).folder
  path = folder / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest['splits']['train']['bytes'] += 1
  path.write_text(json.dumps(manifest))
  with pytest.raises(DamagedCache, match='manifest.json has other contents'):
    data.open_packed(folder)


def test_the_tokenizer_of_other_tokens_is_damage(settings):
  one, other = (data.prepare(settings(separator=name)).folder for name in ('none', 'eos'))
  shutil.copytree(other / 'tokenizer', one / 'tokenizer', dirs_exist_ok=True)
  with pytest.raises(DamagedCache, match='is not the tokenizer of these tokens'):
    data.open_packed(one)


def test_another_format_version_is_not_used(settings, counted, monkeypatch):
  config = settings()
  data.prepare(config)
  monkeypatch.setattr('crt_jax.data.manifest.FORMAT_VERSION', 2)
  data.prepare(config)
  assert len(counted) == 2


@pytest.mark.parametrize(
  ('target', 'call', 'left'),
  [
    ('cache.Path.rename', 3, '.parts-'),  # of the record of a part
    ('token_files.TokenWriter.write', 2, '.tmp-'),
    ('cache.Path.rename', 4, '.tmp-'),
  ],
  ids=['tokenising', 'writing', 'renaming'],
)
def test_killed_at_any_moment_leaves_nothing_that_is_used(settings, counted, target, call, left):
  kill = f"""
import os, signal
from crt_jax.data import cache
original, calls = {target}, []
def kill(self, *args):
  calls.append(1)
  if len(calls) == {call}:
    os.kill(os.getpid(), signal.SIGKILL)
  return original(self, *args)
{target} = kill
"""
  config = settings()
  process = run(config, kill)
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  root = data.resolve(config).cache_root
  assert [name for name in names(root) if left in name]  # it really was in the middle
  dataset = data.prepare(config)  # neither waits for the dead process nor takes what it left
  assert len(counted) == 1
  assert names(root) == [dataset.folder.name, dataset.folder.name + '.lock']
  assert contents(dataset.folder) == contents(
    data.prepare({**config, 'cache_dir': str(root / 'b')}).folder
  )


def test_an_exception_while_building_leaves_only_tokenised_parts(settings):
  config = settings()
  root = data.resolve(config).cache_root
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr('crt_jax.data.tokenise.write_manifest', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      data.prepare(config)
  lock, parts = names(root)
  folder = lock.removesuffix('.lock')
  assert parts.startswith(f'{folder}.parts-')
  data.prepare(config)
  assert names(root) == [folder, lock]


def test_a_full_disk_is_one_line(settings, monkeypatch):
  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('crt_jax.data.token_files.TokenWriter.write', full)
  with pytest.raises(ValueError, match='data.cache_dir: cannot write .*No space left on device'):
    data.prepare(settings())


def test_a_cache_that_cannot_be_written_is_one_line(settings, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='data.cache_dir: cannot write .*file') as error:
    data.prepare(settings(cache_dir=str(tmp_path / 'file' / 'cache')))
  assert '\n' not in str(error.value)


def test_a_second_builder_waits_for_the_first(tmp_path):
  """The lock is held by someone else: wait, then take what they made."""
  folder, built = tmp_path / 'data', []

  def open_folder(path):
    if not path.exists():
      raise FileNotFoundError(path)
    return 'opened'

  def build(path):
    built.append(path)

  with (tmp_path / 'data.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    results = []
    thread = threading.Thread(
      target=lambda: results.append(cache.open_or_build(folder, open_folder, build))
    )
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive() and not built
    folder.mkdir()
  thread.join(10)
  assert results == ['opened'] and not built


def test_without_locks_the_rename_decides(tmp_path, monkeypatch):
  def no_locks(*args):
    raise OSError(95, 'Operation not supported')

  def open_folder(path):
    if not (path / 'a').exists():
      raise FileNotFoundError(path)
    return (path / 'a').read_text()

  def build(path):
    (path / 'a').write_text('mine')
    (tmp_path / 'data').mkdir()  # meanwhile another process finishes first
    (tmp_path / 'data' / 'a').write_text('theirs')

  monkeypatch.setattr(cache.fcntl, 'flock', no_locks)
  assert cache.open_or_build(tmp_path / 'data', open_folder, build) == 'theirs'
  assert names(tmp_path) == ['data', 'data.lock']


def test_only_what_the_dead_have_left_is_removed(tmp_path):
  dead = subprocess.Popen(['true'])
  dead.wait()
  host, living = socket.gethostname(), os.getppid()
  kept = [f'data.tmp-{host}-{living}-0a1b2c3d', f'data.tmp-{host}-2-{dead.pid}-0a1b2c3d']
  for name in (*kept, *(f'data.tmp-{host}-{pid}-0a1b2c3d' for pid in (dead.pid, os.getpid()))):
    (tmp_path / name).mkdir()

  def open_folder(path):
    return (path / 'a').read_text()

  built = cache.open_or_build(
    tmp_path / 'data', open_folder, lambda path: (path / 'a').write_text('built')
  )
  assert built == 'built' and names(tmp_path) == sorted([*kept, 'data', 'data.lock'])


@pytest.mark.parametrize(
  'error, is_kept',
  [(storage.OutOfReach('a.txt: Stale'), True), (MemoryError(), True), (ValueError('a.txt'), False)],
)
def test_the_work_of_many_is_removed_for_a_mistake_alone(tmp_path, error, is_kept):
  folder = tmp_path / 'parts'
  folder.mkdir()

  def fail():
    raise error

  def open_folder(path):
    raise FileNotFoundError

  with pytest.raises(type(error)):
    cache.open_or_build(tmp_path / 'data', open_folder, print, cache.Shared(folder, fail))
  assert folder.exists() == is_kept


def test_where_another_process_is_faster_its_work_is_taken(tmp_path):
  folder, scratch = tmp_path / 'data', tmp_path / 'scratch'

  def open_folder(path):
    return (path / 'a').read_text()

  def work():
    folder.mkdir()
    (folder / 'a').write_text('theirs')
    scratch.mkdir()
    (scratch / 'tidied up' / 'meanwhile').write_text('')

  shared = cache.Shared(scratch, work)
  assert cache.open_or_build(folder, open_folder, lambda path: 1 / 0, shared) == 'theirs'
  assert names(tmp_path) == ['data']
  with pytest.raises(FileNotFoundError, match='gone'):
    cache.open_or_build(
      tmp_path / 'b',
      open_folder,
      lambda path: 1 / 0,
      cache.Shared(scratch, (tmp_path / 'gone').stat),
    )


@pytest.mark.slow
def test_processes_that_start_together_do_the_work_once(settings, tmp_path):
  log = tmp_path / 'log'
  slow = f"""
import os, time
from crt_jax.data import token_dataset
pack = token_dataset.pack
def logged(*args, **kwargs):
  with open({str(log)!r}, 'a') as file:
    file.write('packed\\n')
  time.sleep(1)
  return pack(*args, **kwargs)
token_dataset.pack = logged
while not os.path.exists({str(tmp_path / 'go')!r}):
  time.sleep(0.01)
"""
  config = settings()
  processes = [run(config, slow) for _ in range(4)]
  time.sleep(6)
  (tmp_path / 'go').touch()
  for process in processes:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
  assert log.read_text() == 'packed\n'


@pytest.mark.parametrize('name', ['manifest.json', 'train-00000.bin', 'crt_tokenizer.json'])
@pytest.mark.parametrize('number', [errno.ESTALE, errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_is_not_built_again(settings, counted, monkeypatch, name, number):
  config = settings()
  folder = data.prepare(config).folder
  before, tries, open_file = contents(folder), [], io.open

  def failing(file, *args, **kwargs):
    if str(file).endswith(name):
      tries.append(1)
      raise OSError(number, os.strerror(number), str(file))
    return open_file(file, *args, **kwargs)

  monkeypatch.setattr(storage.time, 'sleep', lambda seconds: None)
  with monkeypatch.context() as patch:
    patch.setattr(io, 'open', failing)
    with pytest.raises(storage.OutOfReach) as caught:
      data.prepare(config)
  said = str(caught.value)
  assert name in said and f': {os.strerror(number)}; nothing was changed; run' in said
  assert len(tries) == 1 + len(storage.WAITS) and len(counted) == 1
  assert contents(folder) == before and len(names(folder.parent)) == 2
  assert data.prepare(config).folder == folder and len(counted) == 1


def test_a_job_that_has_mapped_a_damaged_cache_goes_on(settings):
  config = settings()
  running = data.prepare(config)
  tokens, inode = running.train[:].copy(), (running.folder / 'train-00000.bin').stat().st_ino
  (running.folder / 'validation-00000.bin').unlink()
  again = data.prepare(config)
  kept = again.folder.with_name(f'{again.folder.name}.damaged-0')
  assert (kept / 'train-00000.bin').stat().st_ino == inode  # neither deleted nor written to
  np.testing.assert_array_equal(running.train[:], tokens)
  np.testing.assert_array_equal(again.train[:], tokens)


def test_every_damaged_file_is_listed_and_nothing_changes(settings, counted):
  config = settings(tokenizer='bpe', vocab_size=270)
  with pytest.raises(ValueError, match='this data was never prepared'):
    data.damaged_files(config)
  folder = data.prepare(config).folder
  assert data.damaged_files(config) == []
  _flip(folder / 'train-00000.bin')
  (folder / 'validation-00000.bin').unlink()
  _flip(folder / 'tokenizer' / 'tokenizer.json')
  before = contents(folder)
  found = data.damaged_files(config)
  assert [name in line for name, line in zip(('train-', 'valid', 'token'), found, strict=True)]
  _flip(folder / 'manifest.json')
  assert 'manifest.json' in data.damaged_files(config)[0]
  _flip(folder / 'manifest.json')
  assert contents(folder) == before and len(counted) == 1


def test_samples_are_said_to_be_samples(settings, monkeypatch):
  config = settings()
  whole = data.prepare(config)
  monkeypatch.setattr(token_dataset, 'READ_WHOLE_BYTES', 0)
  sampled = data.prepare(config)
  assert sampled.is_sampled and not whole.is_sampled and not data.prepare(config, True).is_sampled
  assert 'crt-prepare --verify reads every byte' in sampled.summary
  assert 'samples' not in whole.summary
