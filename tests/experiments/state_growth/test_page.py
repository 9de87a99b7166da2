"""The table of the state's growth."""

from experiments.state_growth import page


def test_the_table(tmp_path):
  record = dict(study='state_growth', loops=2, positions=3, width=64, prelude_layers=1)
  record |= dict(origin=dict(commit='0123456789'))
  record['variants'] = {'no gate': [[0.62, 1.2, 1359.0], [0.62, 1.4, 1361.0]]}
  [shown] = page.texts(record, 'state_growth', tmp_path).values()
  assert '| no gate | 0.62 | 1.3 | 1,360 |' in shown
