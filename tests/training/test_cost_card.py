"""What a run says of itself before it compiles: its cost, its epochs, and loudly where its texts
stand in for others. That it comes before compiling: test_loop.py."""

import types

import pytest

from crt_jax.runs import workdir
from crt_jax.training import cost_card, startup
from tests.training.tiny import PLAIN, tiny_config

pytestmark = pytest.mark.usefixtures('caches')
ABOUT = {'about.stands_in_for': 'a Great Corpus', 'about.first_look': 'configs/x.py:size=cpu'}


def card(tmp_path, **changes):
  """The card of 100 000 steps of 8 x 16 tokens, on nine tenths of the novel."""
  config = tiny_config(**PLAIN | {'train.steps': 100_000} | changes)
  plan = startup.check(config, str(tmp_path / 'run'), fork=False, reset_optimizer=False)
  same = {name: getattr(plan, name) for name in ('config', 'model', 'mesh')}
  dataset = startup.open_data(plan)
  run = types.SimpleNamespace(
    **same, dataset=dataset, state=plan.steps.abstract, first_step=0, depths=plan.model.depths()
  )
  return cost_card.cost_card(run)


def test_the_card_says_what_is_trained_how_often_and_how_long(tmp_path):
  said = card(tmp_path)
  lines = dict(line.split(maxsplit=1) for line in said.splitlines())
  assert lines['epochs'] == '12 of moby_dick 1.08M tokens'
  assert lines['time'].startswith('about ') and lines['time'].endswith(' tokens/s')
  assert 'tokens of moby_dick are scored in 1 form(s)' in lines['at']
  assert 'STAND-IN' not in said and 'first look' not in said


def test_stand_ins_and_days_are_said_loudly(tmp_path, monkeypatch):
  monkeypatch.setattr(cost_card, 'tokens_per_second', lambda run: 1.0)
  said = card(tmp_path, **ABOUT)
  assert '*** STAND-IN TEXTS: moby_dick, 12 times over, in place of\n*** a Great Corpus.' in said
  assert 'compares with no published number' in said
  assert '*** 148 days on this machine.' in said and said.endswith('--config=configs/x.py:size=cpu')


def test_what_is_said_of_an_experiment_is_no_change_of_it():
  before, after = workdir.plain(tiny_config()), workdir.plain(tiny_config(**ABOUT))
  assert before != after and not workdir.changed_fields(before, after)
  del before['about']  # a run begun before there was such a section
  assert not workdir.changed_fields(before, after)


def test_a_product_tells_what_a_machine_can_do():
  assert 1e8 < cost_card.product_flops('float32') < 1e16
