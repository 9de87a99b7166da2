"""Publishing a study: what is kept of it, which study it is, what the page says."""

import json

import pytest

from docs import make_studies
from experiments import cli

ORIGIN = dict(command='--workdir=/home/me', commit='0123456789', at='2026-01-02', devices=1)


def variant(perplexities, depths=(None,), **model):
  config = {name: {} for name in ('train', 'eval', 'mesh')}
  config['model'] = (
    dict(name='cart', width=128, gate_init=0.9, loops=4, loops_min=0, prelude_layers=2) | model
  )
  config['optimizer'] = dict(decay_mask='all', frozen=[])
  config['data'] = dict(corpus='moby_dick', files='/home/me/*.txt')
  rows = [
    dict(step=step, decay_factor=0.97, gate_mean=[0.89391, 0.89393], gate_max=[0.9, 0.9])
    | dict(gate_histogram=[[0] * 20] * 2, loss=[1 / 3, 2 / 3])
    for step in range(1, 102)
  ]
  validation = [dict(form='parallel', depth=d, perplexity=perplexities) for d in depths]
  cost = dict(tokens=512_000, parameters=1_500_000, forward_backward_flops_per_token=9e6)
  jacobian = dict(jacobian_radius=[1.41, 1.43], jacobian_norm=[5.0, 5.2])
  return dict(config=config, origin=ORIGIN, seeds=[1, 2], cost=cost, history=rows) | dict(
    validation=validation, jacobian=jacobian
  )


def written(folder, variants):
  (folder / 'variants').mkdir()
  for name, result in variants.items():
    (folder / 'variants' / f'{name}.json').write_text(json.dumps(result))
  return folder


def test_an_unfinished_study_is_recognised_thinned_and_shown(tmp_path):
  found = {name: variant([6.5, 6.75]) for name in ('decay_0_9', 'no_decay_0_9')}
  name, record = make_studies.read_study(written(tmp_path, found))
  assert name == 'gate' and record['study'] == 'gate' and list(record['variants']) == list(found)
  steps = [row['step'] for row in record['variants']['decay_0_9']['history']]
  assert len(steps) <= make_studies.ROWS and steps[-1] == 101
  text = json.dumps(record)
  assert '/home/me' not in text and 'histogram' not in text and '0.333333' in text
  page = make_studies.section(name, record)
  row = next(line for line in page.splitlines() if line.startswith('| decay 0.9 '))
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  assert cells[1:4] == ['0.8939', '0.8939', '0.9000']
  assert cells[4:] == ['1.420 (1.410 to 1.430)', '5.10 (5.00 to 5.20)', '6.625 (6.500 to 6.750)']
  assert 'Unfinished: 2 of 8 variants' in page and '(results/gate.png)' in page


def test_tables_of_the_other_studies(tmp_path):
  loops = {
    'R_4': variant([6.5, 6.5], depths=(1, 4)),
    'R_drawn_from_1_to_8': variant([6.0, 7.0], depths=(1, 4), loops=8, loops_min=1),
  }
  name, record = make_studies.read_study(written(tmp_path, loops))
  assert name == 'loops_at_evaluation'
  page = make_studies.section(name, record)
  assert '| trained with R = 4 | trained with R drawn from 1 to 8 |' in page
  assert '| 4 | 6.500 | 6.500 (6.000 to 7.000) |' in page and 'Unfinished' not in page
  record = dict(record, study='grid', variants={'P2_R4': variant([6.5, 6.5])})
  assert '| 2 | 4 | 1.50 | 9.0 | 6.50 |' in make_studies.section('prelude_or_loops', record)
  growth = dict(study='state_growth', loops=2, origin=ORIGIN)
  growth['variants'] = {'no gate': [[0.62, 1.2, 1359.0], [0.62, 1.4, 1361.0]]}
  assert '| no gate | 0.62 | 1.3 | 1,360 |' in make_studies.section('state_growth', growth)


def test_mistakes_are_named(tmp_path):
  with pytest.raises(cli.Mistake, match='no variant is done'):
    make_studies.read_study(tmp_path)
  with pytest.raises(cli.Mistake, match="no study of configs/studies has the variants .'odd'"):
    make_studies.read_study(written(tmp_path, {'odd': variant([1.0, 1.0])}))


def test_every_study_has_a_place_on_the_page():
  for name in (*make_studies.studies(), 'state_growth'):
    assert make_studies.filled(make_studies.PAGE, 'text', name)
