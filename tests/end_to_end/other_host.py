"""What another host may do differently, for a process whose PYTHONPATH has a `sitecustomize` that
imports this: its clock is a day ahead, it has another version of a package, or steps take longer,
so that a test can interrupt between two of them.
"""

import importlib.abc
import os
import sys
import time

if os.environ.get('OTHER_CLOCK'):
  _time, _time_ns = time.time, time.time_ns
  time.time = lambda: _time() + 86_400
  time.time_ns = lambda: _time_ns() + 86_400 * 10**9


class _AfterImport(importlib.abc.MetaPathFinder):
  """Changes a module once it is imported, so that starting Python stays quick."""

  def __init__(self, name, change):
    self._name, self._change = name, change

  def find_spec(self, name, path, target=None):
    if name != self._name:
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(name)
    run = spec.loader.exec_module

    def run_and_change(module):
      run(module)
      self._change(module)

    spec.loader.exec_module = run_and_change
    return spec


def _other_version(module):
  module.__version__ = os.environ['OTHER_VERSION']


def _slow_steps(module):
  requested = module.StopSignal.requested

  def wait_and_ask(self, step):
    time.sleep(float(os.environ['OTHER_PACE']))
    return requested(self, step)

  module.StopSignal.requested = wait_and_ask


for _variable, _module, _change in (
  ('OTHER_VERSION', 'optax', _other_version),
  ('OTHER_PACE', 'crt_jax.cluster.preemption', _slow_steps),
):
  if os.environ.get(_variable):
    sys.meta_path.insert(0, _AfterImport(_module, _change))
