"""Which steps a profile is of."""

import jax
import pytest

from crt_jax import schema
from crt_jax.runs import workdir
from crt_jax.training import profile
from tests.training.tiny import tiny_config


@pytest.mark.parametrize('stops_after, ended', [(9, 6), (4, 4)])
def test_it_begins_and_ends_with_its_steps_or_the_run(monkeypatch, tmp_path, stops_after, ended):
  now, said = [0], []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: said.append((now[0], folder)))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: said.append(now[0]))
  asked = profile.profiled(tiny_config(**{'train.profile': '3-5'}))
  with profile.Profile(asked, tmp_path) as one:
    for now[0] in range(1, stops_after + 1):
      one.before(now[0], ())
  assert said == [(3, tmp_path), ended]


def test_nothing_is_profiled_unless_asked(monkeypatch, tmp_path):
  monkeypatch.delattr(jax.profiler, 'start_trace')
  assert profile.profiled(tiny_config()) == (0, 0)
  with profile.Profile((0, 0), tmp_path) as one:
    one.before(1, ())


@pytest.mark.parametrize('text', ['5', '5-3', '0-2', '3-13', 'all'])
def test_steps_that_the_run_does_not_take_are_refused(text):
  with pytest.raises(ValueError, match=f"train.profile='{text}' must be .* train.steps=12"):
    schema.check(tiny_config(**{'train.profile': text}))


def test_a_run_goes_on_with_another_window():
  before, after = (workdir.plain(tiny_config(**{'train.profile': p})) for p in ('', '3-5'))
  assert workdir.changed_fields(before, after) == {}
