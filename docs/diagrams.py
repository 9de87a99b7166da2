"""The drawn figures of docs/: the CRT's recurrence, its parallel passes, and CART.

Lengths are inches on the page, so that a font of 8 pt is 8 pt where the figure is 7 inches wide.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

# Okabe and Ito's palette, which the colour-blind tell apart.
BLUE, ORANGE, GREY, INK = '#0072B2', '#D55E00', '#6b6b6b', '#1a1a1a'
PALE_BLUE, PALE_ORANGE, PALE_GREY = '#d6e9f5', '#fbe3d3', '#efefef'
EXACT = 1e-10  # below it a difference in float64 is rounding


def crt_recurrence(path: pathlib.Path) -> None:
  """Draws three positions of the exact recurrence: z_{t-1} and e_t make x_t, the block z_t."""
  axes = _page(7, 4.75)
  columns = (1.6, 3.8, 6.0)
  for t, x in enumerate(columns):
    _text(axes, x, 0.12, f'token {t}', INK)
    _arrow(axes, (x, 0.24), (x, 0.44))
    _box(axes, x, 0.62, 1.0, 0.34, 'embedding', PALE_GREY)
    _arrow(axes, (x, 0.79), (x, 1.5))
    _text(axes, x - 0.16, 1.06, f'$e_{t}$', INK, 10)
    inner = f'$z_{{{t - 1}}} + e_{t}$'
    _box(axes, x, 1.75, 1.14, 0.5, f'correction\nF ( LN ( {inner} ) )', PALE_ORANGE)
    _arrow(axes, (x, 2.0), (x, 2.27))
    _plus(axes, x, 2.38)
    _path(axes, [(x, 1.2), (x + 0.76, 1.2), (x + 0.76, 2.38), (x + 0.11, 2.38)])
    _arrow(axes, (x, 2.49), (x, 2.79))
    _text(axes, x - 0.17, 2.63, f'$x_{t}$', INK, 10)
    _box(axes, x, 3.05, 1.14, 0.52, 'block\nD layers', PALE_BLUE)
    _arrow(axes, (x, 3.31), (x, 3.91))
    _text(axes, x - 0.16, 3.64, f'$z_{t}$', INK, 10)
    _box(axes, x, 4.08, 1.14, 0.34, 'LN, output layer', PALE_GREY)
    _arrow(axes, (x, 4.25), (x, 4.48))
    _text(axes, x, 4.6, f'logits for token {t + 1}', INK)
  for left, right in zip(columns, columns[1:], strict=False):
    _arrow(axes, (left + 0.57, 3.05), (right - 0.57, 3.05), GREY, '--')
    middle, end = left + 0.96, right - 0.57
    _text(axes, (middle + end) / 2, 3.24, 'keys,\nvalues', GREY)
    points = [(left, 3.48), (middle, 3.48), (middle, 1.75), (end, 1.75)]
    _path(axes, points, ORANGE, width=2)
  _path(axes, [(0.68, 1.75), (columns[0] - 0.57, 1.75)], ORANGE, width=2)
  _text(axes, 0.36, 1.75, '$z_{-1}=0$', ORANGE, 10)
  _save(axes, path)


def crt_passes(path: pathlib.Path, gap_KxT: np.ndarray) -> None:
  """Draws K passes over T positions: who reads what, and where they are measurably exact.

  Args:
    gap_KxT: largest difference of the logits after K = 1.. passes from the exact recurrence, at
      each position.
  """
  passes, positions = gap_KxT.shape
  axes = _page(7, 4.1)
  row, column, left, right, bottom = 0.55, 0.56, 0.85, 4.25, 0.85
  middle = (positions - 1) * column / 2
  _text(axes, left + middle, 3.95, 'rule', INK, 9, weight='bold')
  words = 'measured: largest |logits \u2212 exact logits|'
  _text(axes, right + middle, 3.95, words, INK, 9, weight='bold')
  for k in range(passes):
    y = bottom + k * row
    _text(axes, left - 0.4, y, f'K = {k + 1}', INK, ha='right')
    _text(axes, right - 0.35, y, f'K = {k + 1}', INK, ha='right')
    for t in range(positions):
      x = left + t * column
      is_exact = k + 1 >= t + 2
      _box(axes, x, y, 0.42, 0.26, 'exact' if is_exact else '', PALE_BLUE if is_exact else 'white')
      if k and t:
        _arrow(axes, (x - column + 0.1, y - row + 0.13), (x - 0.1, y - 0.13), ORANGE)
      if t:
        _arrow(axes, (x - column + 0.21, y), (x - 0.21, y), GREY, size=6)
      gap = gap_KxT[k, t]
      colour = PALE_BLUE if gap < EXACT else 'white'
      _box(axes, right + t * column, y, 0.5, 0.26, _difference(gap), colour)
    if k:
      _text(axes, left - 0.36, y - 0.31, '0', ORANGE, 9)
      _arrow(axes, (left - 0.28, y - 0.28), (left - 0.12, y - 0.13), ORANGE)
  for t in range(positions):
    _arrow(axes, (left + t * column, 0.5), (left + t * column, bottom - 0.13))
    _text(axes, left + t * column, 0.4, f'$e_{t}$', INK, 10)
    _text(axes, left + t * column, 0.15, f't = {t}', INK)
    _text(axes, right + t * column, 0.15, f't = {t}', INK)
  _save(axes, path)


def cart(path: pathlib.Path) -> None:
  """Draws CART from tokens to logits: prelude, frozen anchor, the looped core, coda."""
  axes = _page(7, 3.25)
  y = 2.05
  _text(axes, 0.26, y, 'tokens', INK)
  _arrow(axes, (0.48, y), (0.62, y))
  _box(axes, 1.0, y, 0.76, 0.6, 'embedding,\nprelude:\nP layers', PALE_GREY)
  _arrow(axes, (1.38, y), (2.08, y))
  _text(axes, 1.56, y + 0.13, '$e$', INK, 10)
  _path(axes, [(1.56, y), (1.56, 0.56)], ORANGE, width=2)
  _box(axes, 1.56, 0.33, 1.5, 0.46, 'anchor: keys, values,\nmade once from $e$', PALE_ORANGE)
  _path(axes, [(2.31, 0.33), (4.02, 0.33), (4.02, y - 0.3)], ORANGE, width=2)
  _box(axes, 3.6, 2.06, 3.36, 2.0, '', 'none', edge=GREY, line='--')
  _text(axes, 2.9, 1.2, 'R loops, the same core each time', GREY)
  _box(axes, 2.47, y, 0.78, 0.6, 'blend of\nlast three\nstates', PALE_GREY)
  _arrow(axes, (2.86, y), (3.0, y))
  _plus(axes, 3.11, y)
  _arrow(axes, (3.11, 1.62), (3.11, y - 0.11), GREY)
  _text(axes, 3.11, 1.51, 'loop code of $r$', GREY)
  _arrow(axes, (3.22, y), (3.5, y))
  _text(axes, 3.35, y - 0.16, '$u_r$', INK, 10)
  _box(axes, 4.02, y, 1.04, 0.6, 'core:\ncross-attention,\nSwiGLU', PALE_BLUE)
  _arrow(axes, (4.54, y), (4.7, y))
  _plus(axes, 4.81, y)
  _path(axes, [(3.33, y), (3.33, 2.5), (4.81, 2.5), (4.81, y + 0.11)])
  _text(axes, 4.07, 2.62, 'gate: $A \\odot u_r$', INK)
  _arrow(axes, (4.92, y), (5.5, y))
  _text(axes, 5.1, y - 0.16, '$h_r$', INK, 10)
  _path(axes, [(5.1, y), (5.1, 2.78), (2.47, 2.78), (2.47, y + 0.3)], GREY)
  _text(axes, 4.2, 2.9, 'to the next loop', GREY)
  _box(axes, 5.82, y, 0.62, 0.6, 'coda:\n1 layer', PALE_GREY)
  _arrow(axes, (6.13, y), (6.28, y))
  _box(axes, 6.62, y, 0.68, 0.6, 'RMSNorm,\ntied\noutput', PALE_GREY)
  _arrow(axes, (6.62, y + 0.3), (6.62, 2.68))
  _text(axes, 6.62, 2.8, 'logits', INK)
  _save(axes, path)


def _difference(gap: float) -> str:
  """Formats a difference: two decimals, or its power of ten if it is rounding error."""
  if gap == 0:
    return '0'
  return f'{gap:.2f}' if gap >= EXACT else f'{gap:.0e}'.replace('e-', 'e\u2212')


def _page(width: float, height: float):
  figure = Figure(figsize=(width, height))
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set_xlim(0, width)
  axes.set_ylim(0, height)
  axes.axis('off')
  return axes


def _save(axes: Axes, path: pathlib.Path) -> None:
  figure = axes.get_figure(root=True)
  assert figure is not None
  figure.savefig(path, dpi=150, metadata={'Software': None})


def _text(
  axes: Axes,
  x: float,
  y: float,
  words: str,
  colour: str,
  size: float = 8,
  ha: str = 'center',
  weight: str = 'normal',
) -> None:
  axes.text(x, y, words, color=colour, fontsize=size, ha=ha, va='center', weight=weight)


def _box(
  axes: Axes,
  x: float,
  y: float,
  width: float,
  height: float,
  words: str,
  fill: str,
  edge: str = INK,
  line: str = '-',
) -> None:
  """Draws a rounded box around the point (x, y)."""
  corner = (x - width / 2, y - height / 2)
  style = 'round,pad=0,rounding_size=0.06'
  patch = FancyBboxPatch(
    corner, width, height, boxstyle=style, facecolor=fill, edgecolor=edge, linestyle=line
  )
  axes.add_patch(patch)
  _text(axes, x, y, words, INK)


def _plus(axes: Axes, x: float, y: float) -> None:
  axes.add_patch(Circle((x, y), 0.11, facecolor='white', edgecolor=INK))
  axes.plot([x - 0.06, x + 0.06], [y, y], color=INK, linewidth=1)
  axes.plot([x, x], [y - 0.06, y + 0.06], color=INK, linewidth=1)


def _arrow(
  axes: Axes,
  start: tuple[float, float],
  end: tuple[float, float],
  colour: str = INK,
  line: str = '-',
  width: float = 1,
  size: float = 8,
) -> None:
  shape = f'-|>,head_length={size / 20},head_width={size / 40}'
  arrow = FancyArrowPatch(
    start,
    end,
    arrowstyle=shape,
    mutation_scale=10,
    color=colour,
    linestyle=line,
    linewidth=width,
    shrinkA=0,
    shrinkB=0,
  )
  axes.add_patch(arrow)


def _path(
  axes: Axes, points: Sequence[tuple[float, float]], colour: str = INK, width: float = 1
) -> None:
  """Draws straight lines through the points, with an arrow head at the last."""
  *before, last = points
  axes.plot(*zip(*before, strict=True), color=colour, linewidth=width, solid_capstyle='butt')
  _arrow(axes, before[-1], last, colour, width=width)
