"""Before training every form of the evaluation is tried, by all processes in the same programs."""

import types

import jax
import pytest

from crt_jax.evaluation import protocols
from crt_jax.evaluation.perplexity import Form
from crt_jax.placing import ON_ONE_DEVICE

FORMS = (Form('parallel', 2), Form('sequential'))


@pytest.mark.parametrize(('processes', 'slow', 'times'), [(1, 60, 2), (1, 0, 1), (2, 0, 2)])
def test_a_slow_form_is_timed_once_by_one_process_and_twice_by_several(
  monkeypatch, processes, slow, times
):
  """Whether a form is slow is a matter of each process's own clock."""
  ran = []
  for name, stand_in in {
    'SLOW': slow,
    'jacobians': lambda *_: None,
    'scoring_model': lambda model, _: model,
    'trained_form': lambda _: FORMS[0],
    'forms': lambda *_: FORMS,
    '_sample': lambda *_: [{}],
    '_evaluate': lambda model, params, form, *_: ran.append(form),
  }.items():
    monkeypatch.setattr(protocols, name, stand_in)
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  dataset = types.SimpleNamespace(validation_sets={'text': None})
  shares = []
  seconds = protocols.rehearse(None, {}, dataset, None, ON_ONE_DEVICE, shares.append)
  assert shares == [i / len(FORMS) for i in range(len(FORMS))]
  assert ran == [form for form in FORMS for _ in range(times)]
  assert seconds.keys() == set(FORMS)
