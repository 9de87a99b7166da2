"""What the figures say; how they look has to be looked at."""

import json

import pytest
from matplotlib.figure import Figure

from crt_jax.evaluation import figures

ORIGIN = {
  'device': 'NVIDIA H200',
  'devices': 2,
  'versions': {'jax': '0.10.2'},
  'python': '3.11.9',
  'at': '2026-11-21T10:00:00+00:00',
}
CAPTION = '2 x NVIDIA H200, jax 0.10.2, python 3.11.9, 2026-11-21'


@pytest.fixture
def drawn(monkeypatch):
  """Every text and line of the figures that are saved."""
  seen = {'texts': [], 'lines': []}
  save = Figure.savefig

  def listen(figure, *args, **kwargs):
    save(figure, *args, **kwargs)
    seen['texts'] += [text.get_text() for text in figure.findobj(lambda a: hasattr(a, 'get_text'))]
    seen['lines'] += [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]

  monkeypatch.setattr(Figure, 'savefig', listen)
  return seen


def record(form, depth, perplexity):
  used = depth != 1
  return dict(form=form, depth=depth, perplexity=perplexity, is_inference_metric=used, targets=1234)


def test_perplexity_against_depth(tmp_path, drawn):
  records = [record('parallel', k, p) for k, p in ((5, 39.95), (1, 84.44), (2, 43.77))]
  records.append(record('sequential', None, 40.03))
  path = tmp_path / 'figure.png'
  figures.perplexity_against_depth({'sampled': records}, path, ORIGIN, 'D=1')
  assert path.read_bytes().startswith(b'\x89PNG')
  wanted = {'D=1', '84.44 (no recurrence)', '43.77', '39.95', 'exact recurrence: 40.03', '0.08'}
  assert wanted <= set(drawn['texts'])
  assert f'sampled validation windows, 1,234 targets\n{CAPTION}' in drawn['texts']
  assert [[1, 84.44], [2, 43.77], [5, 39.95]] in drawn['lines']
  assert [[0, 40.03], [1, 40.03]] in drawn['lines']


def test_the_whole_set_is_preferred_and_the_recurrence_may_be_missing(tmp_path, drawn):
  results = {
    'sampled': [record('parallel', 2, 9.0)],
    'whole': [record('parallel', 2, 5.0), record('parallel', 3, 4.0)],
  }
  figures.perplexity_against_depth(results, tmp_path / 'figure.svg', ORIGIN)
  assert [[2, 5.0], [3, 4.0]] in drawn['lines']
  assert not any('exact' in text for text in drawn['texts'])


def test_refused(tmp_path):
  with pytest.raises(ValueError, match="form 'beam' is unknown"):
    results = {'sampled': [record('beam', 2, 9.0)]}
    figures.perplexity_against_depth(results, tmp_path / 'figure.png', ORIGIN)
  with pytest.raises(ValueError, match='a transformer has none'):
    results = {'sampled': [record('parallel', None, 9.0)]}
    figures.perplexity_against_depth(results, tmp_path / 'figure.png', ORIGIN)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  with pytest.raises(ValueError, match='no row with a perplexity'):
    figures.training_curve(tmp_path / 'metrics.jsonl', tmp_path / 'figure.png', ORIGIN)


def test_a_figure_says_of_which_set_and_what_is_counted(tmp_path, drawn):
  records = [record('parallel', r, p) | {'set': 'wiki'} for r, p in ((2, 22.0), (6, 20.5))]
  path = tmp_path / 'figure.png'
  figures.perplexity_against_depth({'sampled': records}, path, ORIGIN, passes='loops R')
  assert f'sampled validation windows of wiki, 1,234 targets\n{CAPTION}' in drawn['texts']
  assert 'loops R' in drawn['texts'] and not any('passes' in text for text in drawn['texts'])


def test_training_curves_of_several_sets(tmp_path, drawn):
  rows = [{'step': 10, 'perplexity': 80.0, 'validation_cross_entropy': 3.0}]
  rows[0] |= {'validation_perplexity_tiny': 5.0, 'validation_perplexity_wiki_en': 50.0}
  rows[0] |= {'validation_bits_per_byte_tiny': 0.9}
  metrics = tmp_path / 'metrics.jsonl'
  metrics.write_text(json.dumps(rows[0]) + '\n')
  figures.training_curve(metrics, tmp_path / 'figure.png', ORIGIN)
  assert drawn['lines'] == [[[10, 80]], [[10, 5]], [[10, 50]]]
  labels = {
    'validation tiny: 5.000 at the end, 0.9000 bits per byte',
    'validation wiki_en: 50.00 at the end',
  }
  assert labels <= set(drawn['texts'])


def test_training_curve(tmp_path, drawn):
  rows = [{'step': 10, 'perplexity': 80.0}, {'step': 20, 'perplexity': 20.0}]
  rows.append({'step': 20, 'validation_perplexity': 21.5, 'validation_bits_per_byte': 4.426})
  metrics = tmp_path / 'metrics.jsonl'
  metrics.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  figures.training_curve(metrics, tmp_path / 'figure.png', ORIGIN, 'quickstart')
  assert drawn['lines'] == [[[10, 80], [20, 20]], [[20, 21.5]]]
  label = 'validation: 21.50 at the end, 4.426 bits per byte'
  assert {'quickstart', 'optimiser step', label, CAPTION} <= set(drawn['texts'])


def test_scores_of_tasks_against_depth(tmp_path, drawn):
  def row(form, depth, metric, value, stderr):
    return dict(task='piqa', documents=40, form=form, depth=depth, metric=metric) | dict(
      value=value, stderr=stderr
    )

  rows = [
    row('parallel', 4, 'acc', 0.75, 0.1),
    row('parallel', 2, 'acc', 0.5, 0.1),
    row('parallel', 2, 'acc_norm', 0.25, None),
    row('sequential', None, 'acc', 0.625, 0.1),
  ]
  path = tmp_path / 'figure'
  figures.scores_against_depth(rows, path, ORIGIN, 'crt', 'parallel passes K', (2, 3, 4))
  assert path.with_suffix('.png').exists() and path.with_suffix('.svg').exists()
  wanted = {'piqa: acc', 'acc_norm', 'exact recurrence: 0.6250', 'trained with 2-4'}
  assert wanted | {f'40 documents of piqa\n{CAPTION}'} <= set(drawn['texts'])
  assert [[2, 0.5], [4, 0.75]] in drawn['lines'] and [[0, 0.625], [1, 0.625]] in drawn['lines']
