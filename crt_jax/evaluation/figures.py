"""Figures made from a run's own records, each with its hardware and versions.

They are drawn with matplotlib's Agg canvas and no global state, so they need no display and disturb
no notebook.
"""

import contextlib
import itertools
import math
import pathlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from crt_jax import json_text
from crt_jax.rounding import ceil_div

PARALLEL_PASSES = 'parallel passes K'
BLUE, ORANGE, GREEN, PURPLE, GREY = '#2060a8', '#c8501e', '#3a7d44', '#8a4a9a', '#707070'
COLORS = (BLUE, ORANGE, GREEN, PURPLE, '#9a9a9a', '#c9a227')
STYLE = {
  'font.size': 10,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.color': '#e4e4e4',
  'axes.axisbelow': True,
}
KINDS = ('.png', '.svg')


def training_curve(
  metrics: str | pathlib.Path, path: str | pathlib.Path, origin: dict, title: str = ''
) -> None:
  """Draws perplexity against the step, of training and of each validation set.

  Args:
    metrics: metrics.jsonl; rows with 'step' and 'perplexity' or 'validation_perplexity', and
      'validation_bits_per_byte' where it was measured; of several sets with '_' and the set's name.
    origin: what the numbers were made with, see `caption`.

  Raises:
    ValueError: there is no row to draw.
  """
  rows = json_text.parse_lines(metrics)
  curves = _perplexities(rows)
  if not curves:
    raise ValueError(f'{metrics} has no row with a perplexity; train for at least one step')
  with page_figure(path, title, origin) as axes:
    steps, values = _columns(curves.pop('perplexity', []))
    few = '.' if len(steps) < 30 else ''
    axes.plot(steps, values, few, ls='-', color=GREY, lw=1, label='training (one batch a point)')
    for color, (name, points) in zip(itertools.cycle(COLORS), curves.items(), strict=False):
      steps, values = _columns(points)
      in_bits = name.replace('perplexity', 'bits_per_byte')
      bits = [row[in_bits] for row in rows if _is_finite(row.get(in_bits))]
      words = name.replace('_perplexity', '').replace('_', ' ', 1)
      words += f': {_digits(values[-1])} at the end'
      words += f', {_digits(bits[-1])} bits per byte' if bits else ''
      axes.plot(steps, values, color=color, marker='o', markersize=4, label=words)
    axes.set_xlabel('optimiser step')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel('perplexity per token (log scale)')
    log_axis(axes)
    axes.legend(frameon=False, loc='upper right')


def perplexity_against_depth(
  results: dict,
  path: str | pathlib.Path,
  origin: dict,
  title: str = '',
  passes: str = PARALLEL_PASSES,
  trained: Sequence[int] = (),
) -> None:
  """Draws perplexity against the number of passes, with the exact recurrence, if any, as a line.

  The left panel shows the values, the right one how fast they approach the recurrence. One pass
  (K = 1) is drawn hollow: it leaves the recurrence out and measures no way to use a CRT.

  Args:
    results: what `protocol` returned of one validation set; the whole of it where it was
      evaluated, else the sample.
    origin: what the numbers were made with, see `caption`.
    passes: what the depth counts, for the axis.
    trained: depths that the model was trained with, to be marked.

  Raises:
    ValueError: no parallel form with a depth (a transformer has none) and a finite perplexity, or
      a form of another kind.
  """
  source = 'whole' if results.get('whole') else 'sampled'
  records = [r for r in results[source] if _is_finite(r['perplexity'])]
  unknown = {record['form'] for record in records} - {'parallel', 'sequential'}
  if unknown:
    raise ValueError(f"form '{unknown.pop()}' is unknown; use 'parallel' or 'sequential'")
  parallel = sorted(
    (r for r in records if r['form'] == 'parallel' and r['depth']), key=lambda r: r['depth']
  )
  if not parallel:
    raise ValueError('nothing to draw: no parallel form has a depth (a transformer has none)')
  exact = next((r['perplexity'] for r in records if r['form'] == 'sequential'), None)
  words = {'whole': 'whole validation set', 'sampled': 'sampled validation windows'}[source]
  of = f' of {records[0]["set"]}' if 'set' in records[0] else ''
  made_from = f'{words}{of}, {records[0]["targets"]:,} targets'
  with page_figure(path, title, origin, 1 if exact is None else 2, made_from) as axes:
    left = axes if exact is None else axes[0]
    _draw_values(left, parallel, exact, passes, trained)
    if exact is not None:
      _draw_gaps(axes[1], parallel, exact, passes)


def scores_against_depth(
  rows: Sequence[dict],
  path: str | pathlib.Path,
  origin: dict,
  title: str,
  passes: str,
  trained: Sequence[int] = (),
) -> None:
  """Draws task scores against the number of passes, one panel per task and metric.

  Bands show the standard error, a line the exact recurrence of a CRT.

  Args:
    rows: what `harness.evaluate` returned in every form, each with 'form' and 'depth'.
    origin, passes, trained: as of `perplexity_against_depth`.
  """
  panels: dict[tuple[str, str], dict[str, list[dict]]] = {}
  for row in rows:  # acc and acc_norm of a task are shares of one kind
    panel = panels.setdefault((row['task'], row['metric'].removesuffix('_norm')), {})
    panel.setdefault(row['metric'], []).append(row)
  documents = dict.fromkeys(f'{r["documents"]} documents of {r["task"]}' for r in rows)
  with page_figure(path, title, origin, len(panels), ', '.join(documents)) as axes:
    for ax, ((task, kind), metrics) in zip(
      [axes] if len(panels) == 1 else axes, panels.items(), strict=True
    ):
      for color, (metric, scored) in zip(itertools.cycle(COLORS), metrics.items(), strict=False):
        parallel = sorted((r for r in scored if r['form'] == 'parallel'), key=lambda r: r['depth'])
        depths, values = _columns([(r['depth'], r['value']) for r in parallel])
        errors = [r['stderr'] or 0 for r in parallel]
        ax.errorbar(depths, values, errors, color=color, marker='o', capsize=3, label=metric)
        for exact in (r['value'] for r in scored if r['form'] == 'sequential'):
          words = f'exact recurrence: {_digits(exact)}'
          ax.axhline(exact, color=color, linestyle='--', label=words)
      for i, depth in enumerate(trained):
        words = f'trained with {"-".join(map(str, dict.fromkeys((min(trained), max(trained)))))}'
        ax.axvline(depth, color=GREY, linewidth=1, zorder=0, label=None if i else words)
      ax.set_ylabel(f'{task}: {kind}')
      depth_axis(ax, depths, passes)
      _legend_above(ax)


def caption(origin: dict) -> str:
  """Returns one line of where, with what and when a number was measured, as far as it is known."""
  parts = []
  if 'device' in origin:
    parts.append(f'{origin.get("devices", 1)} x {origin["device"]}')
  parts += [origin['processor']] if origin.get('processor') else []
  parts += [f'{name} {version}' for name, version in origin.get('versions', {}).items()]
  parts += [f'python {origin["python"]}'] if 'python' in origin else []
  parts += [origin['at'][:10]] if 'at' in origin else []
  return ', '.join(parts)


def _is_finite(value: float | None) -> bool:
  """Returns whether a number can be drawn; records have null for one that is not finite."""
  return value is not None and math.isfinite(value)


def _perplexities(rows: list[dict]) -> dict[str, list[tuple]]:
  """Returns name -> (step, value) of training and of each validation set that has values."""
  curves = {}
  for row in rows:
    for name, value in row.items():
      if name.startswith(('perplexity', 'validation_perplexity')) and _is_finite(value):
        curves.setdefault(name, []).append((row['step'], value))
  return curves


def _draw_values(
  axes: Axes, parallel: list[dict], exact: float | None, passes: str, trained: Sequence[int]
) -> None:
  depths = [r['depth'] for r in parallel]
  values = [r['perplexity'] for r in parallel]
  axes.plot(depths, values, color=BLUE, label=passes)
  for depth in trained:
    axes.axvline(depth, color=GREY, linewidth=1, zorder=0, label=f'trained with {depth}')
  for record in parallel:
    used = record['is_inference_metric']
    face = BLUE if used else 'white'
    axes.plot(record['depth'], record['perplexity'], 'o', color=BLUE, markerfacecolor=face)
    words = _digits(record['perplexity']) + ('' if used else ' (no recurrence)')
    _annotate(axes, record['depth'], record['perplexity'], words)
  if exact is not None:
    axes.axhline(exact, color=ORANGE, linestyle='--', label=f'exact recurrence: {_digits(exact)}')
  axes.set_ylabel('perplexity per token')
  depth_axis(axes, depths, passes)
  _legend_above(axes)


def _legend_above(axes: Axes) -> None:
  """Puts the legend above the panel, where no curve passes."""
  axes.legend(
    loc='lower left',
    bbox_to_anchor=(0, 1),
    ncols=2,
    borderaxespad=0,
    frameon=False,
    fontsize=9,
    columnspacing=1,
  )


def _draw_gaps(axes: Axes, parallel: list[dict], exact: float, passes: str) -> None:
  gaps = [(r['depth'], abs(r['perplexity'] - exact)) for r in parallel]
  depths, values = _columns([(depth, gap) for depth, gap in gaps if gap > 0])
  axes.plot(depths, values, color=BLUE, marker='o')
  for depth, gap in zip(depths, values, strict=True):
    _annotate(axes, depth, gap, f'{gap:.2g}')
  axes.set_yscale('log')
  axes.set_ylabel('|perplexity at K - exact| (log scale)')
  depth_axis(axes, [depth for depth, _ in gaps], passes)


@contextlib.contextmanager
def page_figure(
  path: str | pathlib.Path,
  title: str,
  origin: dict,
  panels: int = 1,
  made_from: str = '',
  height: float = 4.2,
) -> Iterator[Any]:
  """Yields the axes of a figure that is readable at page width, and writes it at the end.

  Panels lie two in a row. The origin of the numbers stands in small print below.

  Args:
    path: of a .png or .svg; without such an ending both are written.
    made_from: what is shown, in words, before the origin.
    height: of a row, in inches.
  """
  width, rows = (7 if panels == 1 else 9), ceil_div(panels, 2)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(width, height * rows), layout='constrained')
    axes = figure.subplots(rows, min(panels, 2), squeeze=False).ravel()
    for unused in axes[panels:]:
      unused.set_axis_off()
    if title:
      figure.suptitle(title)
    small = [textwrap.fill(text, 16 * width) for text in (made_from, caption(origin)) if text]
    figure.supxlabel('\n'.join(small), fontsize=8, color=GREY)
    yield axes[0] if panels == 1 else axes[:panels]
    for file in files_of(path):
      figure.savefig(file, dpi=150)


def files_of(path: str | pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of a figure: the one that `path` names, or a PNG and an SVG."""
  path = pathlib.Path(path)
  if path.suffix in KINDS:
    return [path]
  return [path.with_name(path.name + kind) for kind in KINDS]


def _annotate(axes: Axes, x: float, y: float, text: str) -> None:
  """Writes a number beside its point; to the right, where a falling curve leaves room."""
  axes.annotate(
    text, (x, y), (0, 5), textcoords='offset points', va='bottom', color=BLUE, fontsize=8
  )


def _digits(value: float) -> str:
  return f'{value:#.4g}'.rstrip('.')


def depth_axis(axes: Axes, depths: list[int], passes: str) -> None:
  """Puts ticks at the measured depths only."""
  if max(depths) > 10:
    axes.set_xscale('log', base=2)
  axes.set_xticks(depths, [str(depth) for depth in depths])
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.tick_params(axis='x', which='minor', length=0)
  axes.set_xlabel(passes)
  axes.margins(x=0.12, y=0.12)


def log_axis(axes: Axes) -> None:
  """Shows plain numbers on a logarithmic axis, even if it spans less than a decade."""
  axes.set_yscale('log')
  low, high = axes.get_ylim()
  locator = LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(6)
  axes.yaxis.set_major_locator(locator)
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
  axes.yaxis.set_minor_formatter(NullFormatter())


def _columns(pairs: list[tuple]) -> tuple[list, list]:
  return [x for x, _ in pairs], [y for _, y in pairs]
