"""Publishing a study: what is kept of it and what the page says."""

import json

import pytest

from crt_jax.cli.user_errors import Mistake
from experiments.study import page

ORIGIN = dict(command='--workdir=/home/me', commit='0123456789', at='2026-01-02', devices=1)


def variant(perplexities, depths=(None,), **model):
  config = {name: {} for name in ('train', 'eval', 'mesh')}
  config['model'] = (
    dict(name='cart', width=128, gate_init=0.9, loops=4, loops_min=0, prelude_layers=2) | model
  )
  config['optimizer'] = dict(decay_mask='all', frozen=[])
  config['train'] = dict(steps=9)
  config['data'] = dict(corpus='moby_dick', files='/home/me/*.txt')
  config['data'] |= dict(batch_size=2, sequence_length=8)
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


def test_an_unfinished_study_is_thinned_and_shown(tmp_path):
  found = {name: variant([6.5, 6.75]) for name in ('decay_0_9', 'no_decay_0_9')}
  record = page.read(written(tmp_path, found), 'gate')
  assert record['study'] == 'gate' and list(record['variants']) == list(found)
  steps = [row['step'] for row in record['variants']['decay_0_9']['history']]
  assert len(steps) <= page.ROWS and steps[-1] == 101
  text = json.dumps(record)
  assert '/home/me' not in text and 'histogram' not in text and '0.333333' in text
  [shown] = page.texts(record, 'gate', tmp_path).values()
  row = next(line for line in shown.splitlines() if line.startswith('| decay 0.9 '))
  cells = [cell.strip() for cell in row.strip('|').split('|')]
  assert cells[1:4] == ['0.8939', '0.8939', '0.9000']
  assert cells[4:] == ['1.420 (1.410 to 1.430)', '5.10 (5.00 to 5.20)', '6.625 (6.500 to 6.750)']
  assert 'Unfinished: 2 of 8 variants' in shown and '(figures/gate.png)' in shown
  assert (tmp_path / 'gate.png').exists()


def test_tables_of_the_other_studies(tmp_path):
  loops = {
    'R_4': variant([6.5, 6.5], depths=(1, 4)),
    'R_drawn_from_1_to_8': variant([6.0, 7.0], depths=(1, 4), loops=8, loops_min=1),
  }
  record = page.read(written(tmp_path, loops), 'loops_at_evaluation')
  shown = page.depths_table(record)
  assert '| trained with R = 4 | trained with R drawn from 1 to 8 |' in shown
  assert '| 4 | 6.500 | 6.500 (6.000 to 7.000) |' in shown
  record = dict(record, study='grid', variants={'P2_R4': variant([6.5, 6.5])})
  assert '| 2 | 4 | 1.50 | 9.0 | 6.50 |' in page.grid_table(record)


def test_mistakes_are_named(tmp_path):
  with pytest.raises(Mistake, match='no variant is done'):
    page.read(tmp_path, 'gate')
  with pytest.raises(Mistake, match='configs/studies/gate.py has no variant odd'):
    page.read(written(tmp_path, {'odd': variant([1.0, 1.0])}), 'gate')
