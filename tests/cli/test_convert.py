"""crt-convert: what its flags mean and what is refused before anything is read."""

import pytest
from absl import flags
from absl.testing import flagsaver

from crt_jax.cli import Mistake, convert


def test_layers_that_are_kept():
  assert convert.layers('') == ()
  assert convert.layers('0-2, 5,28-29') == (0, 1, 2, 5, 28, 29)


@pytest.mark.parametrize(
  'text, message',
  (('0-', "'0-' is no number or range"), ('3,2', 'must rise'), ('2,2', 'must'), ('4-2', 'must')),
)
def test_layers_that_make_no_sense(text, message):
  with pytest.raises(Mistake, match=message):
    convert.layers(text)


@pytest.mark.parametrize(
  'given, message',
  (
    (dict(source=None, workdir='run'), '--source is missing, as in'),
    (dict(source='theirs', workdir='.'), '--workdir=. is there already; choose a new directory'),
    (dict(source='theirs', workdir='run'), '--source=theirs is not there; give a Hugging'),
  ),
)
def test_mistakes(given, message):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**given), pytest.raises(Mistake, match=message):
    convert.main([])
