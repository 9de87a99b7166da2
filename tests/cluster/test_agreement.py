"""What is compared between processes, and what a difference looks like; real processes are in
tests/end_to_end/test_processes.py."""

import dataclasses
import signal

import jax

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


def test_one_process_agrees_with_itself_and_ends_as_it_likes():
  agreement.agree('config', {'a': 1})
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
