"""The published grid: how many runs, in which order, under which identifiers; each can be built."""

import collections

from configs import cart_grid
from crt_jax import accounting
from crt_jax.cli import config_files

# sha256 of "d_R_P_seed_stage" and "dense_d_layers_seed", as the author's records quote them.
PUBLISHED = {
  '1024_6_6_42_2': 'c2d449975b4e7d0f',
  'dense_256_7_42': '3d04ff17b81e48d4',
  'dense_512_7_42': '360b726d0568fa76',
  'dense_768_7_42': '4fb2e27f81dc94d5',
  'dense_1024_7_42': '6feffa5e66763f35',
}


def test_identifiers_are_the_published_ones():
  assert {name: cart_grid.config_id(name) for name in PUBLISHED} == PUBLISHED
  cells = {cell.config: cell.config_id for cell in cart_grid.grid()}
  assert cells['configs/cart_d1024.py:R=6,P=6,seed=42,stage=2'] == 'c2d449975b4e7d0f'
  assert cells['configs/dense_7l_d1024.py:seed=42'] == '6feffa5e66763f35'


def test_the_grid_is_the_published_one():
  cells = cart_grid.grid()
  assert len(cells) == 64 + 36 + 3 + 6 == len({cell.config_id for cell in cells})
  stages = collections.Counter(cell.config[-7:] for cell in cells)
  assert stages['stage=1'] == 64 and stages['stage=2'] == 39
  assert cells[0].config == 'configs/cart_d256.py:R=2,P=2,seed=42,stage=1'
  assert cells[1].config == 'configs/cart_d256.py:R=2,P=3,seed=42,stage=1'
  assert cells[4].config == 'configs/cart_d256.py:R=4,P=2,seed=42,stage=1'
  assert cells[63].config == 'configs/cart_d1024.py:R=8,P=6,seed=42,stage=1'
  assert cells[65].config == 'configs/cart_d256.py:R=6,P=6,seed=137,stage=2'
  assert cells[100].config == 'configs/cart_d1024.py:R=10,P=4,seed=42,stage=2'
  assert cells[-1].config == 'configs/dense_12l_d1024.py:seed=271'


def test_every_cell_says_what_its_identifier_says():
  for cell in cart_grid.grid():
    config = config_files.load(cell.config)
    model, data = config.model, config.data
    if model.name == 'transformer':
      name = f'dense_{model.width}_{model.layers}_{config.seed}'
    else:
      stage = {512: 1, 1024: 2}[data.sequence_length]
      name = f'{model.width}_{model.loops}_{model.prelude_layers}_{config.seed}_{stage}'
    assert cart_grid.config_id(name) == cell.config_id
    tokens = config.train.steps * data.batch_size * data.sequence_length
    assert tokens == {512: 49_152_000, 1024: 999_424_000}[data.sequence_length]


def test_sizes_are_the_published_ones():
  def stored(spec):
    return accounting.parameters(config_files.load(spec).model).stored

  assert stored('configs/cart_d1024.py:R=10,P=4') == 102_021_123
  assert stored('configs/dense_17l_d1024.py') == 251_169_792
  assert stored('configs/cart_ablations.py:which=unshared_self') == 182_775_811
