"""A profile of a few steps (train.profile), of host and devices."""

import pathlib

import jax
from ml_collections import ConfigDict

from crt_jax import schema
from crt_jax.types import Tree


def profiled(config: ConfigDict) -> tuple[int, int]:
  """Returns the first and the last step of train.profile; (0, 0) for none."""
  return schema.resolve(schema.TrainConfig, config.train).profiled


class Profile:
  """Records steps `first` to `last` into a folder; stops with the context at the latest."""

  def __init__(self, steps: tuple[int, int], folder: pathlib.Path):
    self._first, self._last = steps
    self._folder, self._is_on = folder, False

  def __enter__(self):
    return self

  def __exit__(self, *_: object):
    if self._is_on:
      jax.profiler.stop_trace()

  def before(self, step: int, state: Tree) -> None:
    """Starts recording before the first step, and stops it before the step after the last.

    It waits for the state of the last step first.
    """
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._is_on = True
    elif self._is_on and step == self._last + 1:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._is_on = False
