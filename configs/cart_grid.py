"""The published grid of CART runs, in its order and with its identifiers (cart.md, 7).

This is not an experiment itself.

  python -c "from configs import cart_grid; [print(*cell) for cell in cart_grid.grid()]"
"""

import hashlib
from typing import NamedTuple

WIDTHS = (256, 512, 768, 1024)
SEEDS = (42, 137, 271)


class Cell(NamedTuple):
  """One run: its published identifier, and what to give as --config."""

  config_id: str
  config: str


def grid() -> list[Cell]:
  """Returns 64 cells of stage 1, 36 of stage 2, the reference point P=4, R=10, and dense runs."""
  stage1 = [_cart(d, R, P, 42, 1) for d in WIDTHS for R in (2, 4, 6, 8) for P in (2, 3, 4, 6)]
  stage2 = [_cart(d, R, 6, seed, 2) for d in WIDTHS for R in (6, 8, 10) for seed in SEEDS]
  reference = [_cart(1024, 10, 4, seed, 2) for seed in SEEDS]
  dense = [_dense(layers, seed) for layers in (7, 12) for seed in SEEDS]
  return stage1 + stage2 + reference + dense


def _cart(d: int, R: int, P: int, seed: int, stage: int) -> Cell:
  file = f'configs/cart_d{d}.py:R={R},P={P},seed={seed},stage={stage}'
  return Cell(config_id(f'{d}_{R}_{P}_{seed}_{stage}'), file)


def _dense(layers: int, seed: int) -> Cell:
  return Cell(
    config_id(f'dense_1024_{layers}_{seed}'), f'configs/dense_{layers}l_d1024.py:seed={seed}'
  )


def with_texts(config: str, data: str) -> str:
  """Returns a --config that has arguments, with the texts where a sweep was given some."""
  return f'{config},data={data}' if data else config


def run_name(config: str) -> str:
  """Returns a cell's name in a sweep: 'd256_R2_P2', 'd256_R6_P6_s137' or 'dense_7l_s42'."""
  stem, _, arguments = config.rpartition('/')[2].partition('.py:')
  given = dict(item.split('=') for item in arguments.split(','))
  if stem.startswith('dense'):
    return f'{stem.removesuffix("_d1024")}_s{given["seed"]}'
  seed = '' if given['stage'] == '1' else f'_s{given["seed"]}'
  return f'{stem.removeprefix("cart_")}_R{given["R"]}_P{given["P"]}{seed}'


def config_id(name: str) -> str:
  """Returns the identifier of "d_R_P_seed_stage" or "dense_d_layers_seed"."""
  return hashlib.sha256(name.encode()).hexdigest()[:16]
