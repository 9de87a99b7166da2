"""What is compared between processes, and what a difference looks like; real processes are in
tests/end_to_end/test_processes.py."""

import collections
import dataclasses
import signal
import socket
import threading
import types
from concurrent import futures
from unittest import mock

import jax
import pytest
from jax._src.lib import _jax

from crt_jax import data, schema
from crt_jax.cluster import agreement, preemption
from tests.training.tiny import tiny_config


def test_a_difference_names_field_values_and_processes():
  first = schema.flat({'data': {'batch_size': 8, 'corpus': 'sotu'}, 'seed': 1})
  other = schema.flat({'data': {'batch_size': 16, 'corpus': 'sotu'}, 'seed': 1, 'new': 2})
  line = agreement.difference('config', 3, 4, first, other)
  assert line.startswith(
    'process 3 of 4 has other config than process 0: data.batch_size is 16 there and 8 on '
    "process 0; new is 2 there and '(absent)' on process 0;"
  )
  assert 'the same command' in line and 'corpus' not in line and '\n' not in line


def test_hosts_that_tokenize_for_hours_are_waited_for(monkeypatch):
  service = mock.Mock(blocking_key_value_get=lambda *_: 'null')
  monkeypatch.setattr(agreement, '_here', lambda: agreement._Here(service, 1, 2))
  agreement.require_equal('config', {'seed': 1})
  agreement.require_equal_data(types.SimpleNamespace(identity={}, validation_sets={}))
  waits = [asked.args[1] for asked in service.wait_at_barrier.call_args_list]
  assert waits == [600_000, 24 * 3_600_000]


@pytest.mark.parametrize('count', [2, 64])
def test_clients_of_the_coordination_service_agree_or_hear_the_same_line(monkeypatch, count):
  """No trainers: each client is a thread. What they ask the service for grows with their number."""
  with socket.create_server(('localhost', 0)) as free:
    address = f'localhost:{free.getsockname()[1]}'
  service = _jax.get_distributed_runtime_service(address, count)
  asked = collections.Counter()
  here = threading.local()
  monkeypatch.setattr(agreement, '_here', lambda: here.value)

  class Counting:
    def __init__(self, client):
      self._client = client

    def __getattr__(self, name):
      asked[name] += 1
      return getattr(self._client, name)

  def said(rank):
    client = _jax.get_distributed_runtime_client(address, rank, use_compression=True)
    client.connect()
    here.value = agreement._Here(Counting(client), rank, count)
    agreement.require_equal('config', {'seed': 1})
    try:
      agreement.require_equal('data', {'text': {'hash': 'b' if rank == count - 1 else 'a'}})
    except ValueError as error:
      return str(error)
    finally:
      client.shutdown()

  with futures.ThreadPoolExecutor(count) as pool:
    [line] = set(pool.map(said, range(count)))
  service.shutdown()
  assert f'process {count - 1} of {count} has other data than process 0: text.hash is' in line
  assert asked['key_value_dir_get'] == 2 and asked['key_value_try_get'] == 2
  assert asked['blocking_key_value_get'] == 2 * count


def test_one_process_agrees_with_itself_and_ends_as_it_likes():
  agreement.require_equal('config', {'a': 1})
  with agreement.Companions(preemption.StopSignal()):
    pass


def test_one_that_waits_for_the_end_of_the_others_is_deaf_to_signals(monkeypatch):
  """It would end with 75 while the first one finishes and ends with 0."""
  before = {number: signal.getsignal(number) for number in preemption.CODES}
  heard = []

  class Service:
    def wait_at_barrier(self, name, milliseconds):
      heard.extend(signal.getsignal(number) for number in preemption.CODES)

  monkeypatch.setattr(agreement, '_here', lambda: agreement._Here(Service(), 1, 2))
  monkeypatch.setattr(jax.distributed, 'shutdown', lambda: None)
  try:
    with agreement.Companions(preemption.StopSignal()):
      pass
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert heard == [signal.SIG_IGN] * 3


def test_versions_are_compared():
  assert {'python', 'jax', 'flax', 'optax', 'orbax.checkpoint', 'commit'} <= set(
    agreement.software()
  )


def test_other_tokens_are_another_identity():
  dataset = data.prepare(tiny_config().data)
  before = agreement.data_identity(dataset)
  manifest = {**dataset.manifest, 'versions': 'others'}
  assert agreement.data_identity(dataclasses.replace(dataset, manifest=manifest)) == before
  [shard, *_] = dataset.manifest['splits']['train']['shards']
  splits = {**dataset.manifest['splits'], 'train': {'shards': [{**shard, 'tokens': 1}]}}
  manifest = {**dataset.manifest, 'splits': splits}
  other = agreement.data_identity(dataclasses.replace(dataset, manifest=manifest))
  changed = [name for name in other if other[name] != before[name]]
  assert changed == ['manifest of moby_dick']
