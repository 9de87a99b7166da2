"""Processes of one run stop after the same step, whenever a signal comes."""

import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from crt_jax.cluster.preemption import StopSignal


def test_a_signal_that_comes_while_processes_ask_waits_for_the_next_question(monkeypatch):
  """The others know nothing of it: a process that saved alone would wait for them for ever."""
  stop, asked = StopSignal(), []

  def gathered(mine):
    if not asked:
      stop._receive(signal.SIGTERM)
    asked.append(int(mine[0]))
    return np.stack([mine, [0, 1.0]])  # of a process that no signal reaches

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'process_allgather', gathered)
  with stop.between_steps():
    answers = [stop.requested(step) for step in range(1, 200)]
    assert asked[:2] == [0, signal.SIGTERM]
    assert answers.index(True) > 0
    stop._received = 0  # saved
