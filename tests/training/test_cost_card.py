"""What a run says of itself before it compiles: its cost, its epochs, and loudly where its texts
stand in for others."""

import pytest

from crt_jax.training import cost_card, startup
from tests.training.tiny import PLAIN, tiny_config, train

pytestmark = pytest.mark.usefixtures('caches')


class Compiling(Exception):
  """A run has come to its compiling."""


@pytest.fixture
def card(tmp_path, monkeypatch, capsys):
  """Returns what a run prints until it compiles."""

  def said(**changes):
    def compiling(*_, **__):
      raise Compiling

    with monkeypatch.context() as patch, pytest.raises(Compiling):
      patch.setattr(startup.step, 'compile_steps', compiling)
      train(tiny_config(**PLAIN | changes), tmp_path)
    return capsys.readouterr().out

  return said


def test_the_card_comes_before_compiling_and_is_loud_about_stand_ins(card, monkeypatch):
  long = {'train.steps': 100_000}  # of 8 x 16 tokens, of nine tenths of the novel
  said = card(**long)
  lines = dict(line.split(maxsplit=1) for line in said.splitlines() if ' ' in line)
  assert lines['epochs'] == '12 of moby_dick 1.08M tokens'
  assert lines['compiling'] == 'K=2 ...'
  assert lines['time'].startswith('about ') and lines['time'].endswith(' tokens/s')
  assert 'tokens of moby_dick are scored in 1 form(s)' in lines['at']
  assert 'STAND-IN' not in said and 'first look' not in said

  # What is said of an experiment does not change it: the same run goes on.
  monkeypatch.setattr(cost_card, 'tokens_per_second', lambda run: 1.0)
  about = {'about.stands_in_for': 'a Great Corpus', 'about.first_look': 'configs/x.py:size=cpu'}
  said = card(**about, **long)
  assert '*** STAND-IN TEXTS: moby_dick, 12 times over, in place of\n*** a Great Corpus.' in said
  assert 'compares with no published number' in said
  assert '*** 148 days on this machine.' in said and '--config=configs/x.py:size=cpu\n' in said


def test_a_product_tells_what_a_machine_can_do():
  assert 1e8 < cost_card.product_flops('float32') < 1e16
