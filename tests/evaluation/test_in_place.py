"""Exact scores on a CPU write caches in place; copied at each position, they took twice as long."""

import importlib

import numpy as np
import pytest

from crt_jax import evaluation
from crt_jax.evaluation.likelihood import likelihoods
from crt_jax.recurrence.state import jit_in_place
from tests.contract.models import model_of, params_of

LENGTH = 24
EXACT = evaluation.Form('sequential')
BATCH = {name: np.full((1, LENGTH), 3, np.int32) for name in ('tokens', 'targets')}
SCORES = {
  'perplexity': lambda *model: evaluation.evaluate(*model, [BATCH], sequential=True),
  'accuracy': lambda *model: evaluation.accuracy(*model, [BATCH], {'end': np.array([3])}, EXACT),
  'likelihood': lambda *model: likelihoods(*model, [([1], [2] * LENGTH)], EXACT, context=LENGTH),
}


@pytest.mark.parametrize('name', SCORES)
def test_no_cache_is_copied(name, monkeypatch):
  programs = []

  def recording(*how):
    def call(*arguments):
      lowered = jit_in_place(*how).lower(*arguments)
      programs.append(lowered.compile({'xla_backend_optimization_level': 3}).as_text())
      return jit_in_place(*how)(*arguments)

    return call

  module = importlib.import_module(f'crt_jax.evaluation.{name}')
  monkeypatch.setattr(module, 'jit_in_place', recording)
  model = model_of('crt', layers=1)
  SCORES[name](model, params_of(model))
  (program,) = programs
  cache = f'f32[1,1,2,{LENGTH},8]{{4,3,2,1,0}}'
  assert cache in program
  assert program.count(f'{cache} copy(') <= 1  # of the zeros before the first position
