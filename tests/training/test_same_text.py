"""A run is continued and evaluated on the text that it began with, or not at all."""

import json
import pathlib
import re

import pytest

from crt_jax import data
from crt_jax.training import finish
from experiments.study import variants
from tests.experiments.study.test_study import tiny as tiny_study
from tests.training.tiny import PLAIN, tiny_config, train

TEXTS = {'train/a.txt': 'whale ' * 300, 'train/z.txt': 'boat; ' * 50, 'held/b.txt': 'ship! ' * 99}


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """The folder of some text, and of a finished run on it."""
  root = tmp_path_factory.mktemp('same_text')
  for name, text in TEXTS.items():
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)
  changes = {'data.corpus': 'files', 'data.files': str(root / 'train' / '*.txt'), 'train.steps': 2}
  changes |= {'data.validation_files': str(root / 'held' / '*.txt')}
  train(tiny_config(**PLAIN, **changes, **{'data.cache_dir': str(root / 'cache')}), root / 'run')
  return root


def refused(done, words):
  """Evaluation refuses in one line and leaves what is there."""
  file = done / 'run' / 'evaluation.json'
  before = file.read_text()
  with pytest.raises(ValueError, match=words) as error:
    finish.evaluate_checkpoint(str(done / 'run'))
  assert '\n' not in str(error.value) and str(done / 'run') in str(error.value)
  assert file.read_text() == before


def test_another_text_is_not_scored(done):
  (done / 'held/b.txt').write_text('harpoon ' * 100)
  refused(done, 'the corpus is not the one this run began with')
  (done / 'held/b.txt').write_text(TEXTS['held/b.txt'])
  [before] = json.loads((done / 'run/evaluation.json').read_text())['results']['sampled']
  finish.evaluate_checkpoint(str(done / 'run'))  # on one device, training was on eight
  [after] = json.loads((done / 'run/evaluation.json').read_text())['results']['sampled']
  assert after['cross_entropy'] == pytest.approx(before['cross_entropy'], rel=1e-5)


def test_another_split_of_the_same_documents_is_not_scored(done):
  """Of all documents in a row, those for training first, one changes sides."""
  (done / 'train/z.txt').rename(done / 'held/a.txt')
  refused(done, 'the size of the splits is not the one this run began with')
  (done / 'held/a.txt').rename(done / 'train/z.txt')


def test_what_is_compared_is_what_was_saved():
  now = {'corpus': 'a', 'size of the splits': {'train': 9, 'validation': 1}}
  data.check_identity('run', {'corpus': 'a'}, now)  # an older run did not save the sizes
  for saved in ({'corpus': 'b'}, {'task': {'levels': 3}}):
    with pytest.raises(ValueError, match='^run: the (corpus|task) is not the one this run began'):
      data.check_identity('run', saved, now)


def test_studies_open_a_run_where_its_text_is_checked():
  """open_run alone prepares the data of a trained run; the others named here train their own."""
  trains = ('prepare.py', 'study/vmapped_seeds.py', 'study/variants.py', 'bptt_study/pieces.py')
  folders = (pathlib.Path('experiments'), pathlib.Path('crt_jax/cli'))
  for path in (path for folder in folders for path in folder.rglob('*.py')):
    if not str(path).endswith(trains):
      assert not re.search(r'data\.prepare\(', path.read_text()), path


def test_a_study_does_not_mix_texts(tmp_path, monkeypatch):
  config = tiny_study()
  text = tmp_path / 'a.txt'
  text.write_text('whale ship ' * 400)
  config.data.update(corpus='files', files=str(text), cache_dir=str(tmp_path / 'cache'))
  config.data.validation_fraction = 0.1
  folder = str(tmp_path / 'study')

  def trained(variant, *_):
    return {'data': data.prepare(variant.data).identity, 'validation': []}

  monkeypatch.setattr(variants, 'train_stacked', trained)
  variants.run(config.lock(), folder, only=('a',))
  variants.run(config, folder, only=('a',))
  text.write_text('whale boat ' * 400)
  with pytest.raises(ValueError, match='the corpus is not the one this run began with'):
    variants.run(config, folder, only=('b',))
