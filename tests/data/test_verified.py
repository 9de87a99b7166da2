"""Files are compared with their checksums once a host, and a start does not grow with them."""

import dataclasses
import hashlib
import os
import threading
from pathlib import Path

import pytest

from crt_jax import data
from crt_jax.data import token_files, verified
from crt_jax.data.manifest import read_manifest, write_manifest
from crt_jax.data.token_files import SHARD_TOKENS, DamagedCache, Shard


@pytest.fixture(autouse=True)
def notes(monkeypatch, tmp_path):
  """A temporary folder of its own; files count as settled at once."""
  monkeypatch.setattr(verified.tempfile, 'tempdir', str(tmp_path))
  monkeypatch.setattr(verified, 'SETTLED_SECONDS', 0.0)


def bytes_read() -> int:
  return int(Path('/proc/self/io').read_text().split()[1])


@pytest.fixture
def huge(settings, monkeypatch):
  """Packed data of many shards of 512 MiB that hold nothing."""
  monkeypatch.setattr(token_files, '_BLOCK_BYTES', 1 << 12)
  folder = data.prepare(settings()).folder
  zeros = hashlib.sha256(bytes(32 << 12)).hexdigest()

  def make(number):
    manifest = read_manifest(folder)
    del manifest['format_version']
    shards = [Shard(f'train-{i:05d}.bin', SHARD_TOKENS, zeros, zeros) for i in range(number)]
    for shard in shards:
      (folder / shard.file).write_bytes(b'')
      os.truncate(folder / shard.file, 2 * SHARD_TOKENS)
    manifest['splits']['train']['shards'] = list(map(dataclasses.asdict, shards))
    write_manifest(folder, manifest)
    return folder

  return make


def test_what_a_start_reads_does_not_grow(huge):
  beside = {}
  for number in (10, 1000):
    folder = huge(number)
    manifest, read = (folder / 'manifest.json').stat().st_size, [bytes_read()]
    for _ in range(2):
      dataset = data.open_packed(folder)
      read.append(bytes_read())
    assert len(dataset.train) == number * SHARD_TOKENS and dataset.is_sampled
    first, second = (b - a - manifest for a, b in zip(read, read[1:], strict=False))
    beside[number] = first, second
    assert first > (token_files.SAMPLED_SHARDS - 1) * (32 << 12)
    assert second < 8192
  assert all(abs(a - b) < 1024 for a, b in zip(*beside.values(), strict=True))


def test_every_size_is_looked_at(huge):
  folder = huge(30)
  data.open_packed(folder)
  os.truncate(folder / 'train-00017.bin', 2 * SHARD_TOKENS - 2)
  with pytest.raises(DamagedCache, match='train-00017.bin has 536870910 bytes'):
    data.open_packed(folder)


def test_what_was_changed_is_compared_anew(settings, monkeypatch):
  calls, verify = [], data.token_dataset.verify
  monkeypatch.setattr(
    data.token_dataset, 'verify', lambda *arguments: [calls.append(1), verify(*arguments)]
  )
  folder = data.prepare(settings()).folder
  data.open_packed(folder)
  assert len(calls) == 2  # the tokens, and the digests of the documents; once
  data.open_packed(folder, whole=True)
  assert len(calls) == 4  # asked for
  path = folder / 'validation-00000.bin'
  path.write_bytes(bytes(len(path.read_bytes())))
  for _ in range(2):
    with pytest.raises(DamagedCache, match='validation-00000.bin has other contents'):
      data.open_packed(folder)
  monkeypatch.setattr(verified, 'SETTLED_SECONDS', float('inf'))
  os.utime(path)
  with pytest.raises(DamagedCache):
    data.open_packed(folder)


def test_others_wait_for_the_first(tmp_path):
  (tmp_path / 'a').write_text('a')
  calls, go = [], threading.Event()

  def compare():
    calls.append(1)
    go.wait(10)

  threads = [
    threading.Thread(target=verified.once, args=([tmp_path / 'a'], '', compare)) for _ in range(3)
  ]
  for thread in threads:
    thread.start()
  go.set()
  for thread in threads:
    thread.join(10)
  assert len(calls) == 1


def test_where_nothing_can_be_noted_each_compares(tmp_path, monkeypatch):
  (tmp_path / 'a').write_text('a')
  monkeypatch.setattr(verified.tempfile, 'tempdir', str(tmp_path / 'a'))
  calls = []
  for _ in range(2):
    verified.once([tmp_path / 'a'], '', lambda: calls.append(1))
  assert len(calls) == 2
