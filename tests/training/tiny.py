"""A run of seconds: a tiny CRT on the embedded novel, for the tests of the loop and, in a
subprocess, of kills."""

import json
import pathlib

import jax
import numpy as np

from configs import base
from crt_jax import schema
from crt_jax.cluster import preemption
from crt_jax.runs import checkpoint, lock
from crt_jax.training import loop

PLAIN = {'model.depth_min': 0, 'model.dropout': 0.0}  # compiles one short program


def get_config(arguments=''):
  """Also a config file: --config=tests/training/tiny.py, or tiny.py:transformer."""
  model = dict(layers=1, width=16, heads=2, dropout=0.1)
  if arguments == 'transformer':
    config = schema.experiment(base.transformer_model(**model))
  else:
    config = schema.experiment(base.crt_model(depth=2, depth_min=1, **model))
  config.data.update(sequence_length=16, batch_size=8)
  config.optimizer.learning_rate = 3e-3
  config.train.update(steps=12, log_every=3, eval_every=4, checkpoint_every=4)
  config.eval.update(batches=1, whole=False, during_training_batches=1, sequential=False)
  config.sample.num_tokens = 4
  return config


def tiny_config(arguments='', **changes):
  """The config with dotted changes: tiny_config(**{'train.steps': 4})."""
  config = get_config(arguments)
  config.update_from_flattened_dict(changes)
  return config.lock()


def rows_of(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def params_of(workdir):
  """Path -> array of the newest checkpoint."""
  _, params, _, _ = checkpoint.load_params(workdir)
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same_bits(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].tobytes() == b[name].tobytes(), name


def timeless(row):
  """A row without what a clock decides."""
  timed = ('tokens_per_second', 'mfu', 'input_seconds', 'training_seconds')
  return {name: value for name, value in row.items() if name not in timed}


def train(config, path, fork=False):
  with lock.released():
    loop.train(config, path, fork)


def stop_after(monkeypatch, step):
  monkeypatch.setattr(preemption.StopSignal, 'requested', lambda self, now: now == step)


def refuse(*_, **__):
  raise AssertionError('compiled')


def contents(path):
  """Every file below a folder and when it was written."""
  return {p: p.stat().st_mtime_ns for p in [path, *pathlib.Path(path).rglob('*')]}
