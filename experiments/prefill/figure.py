"""The figure: time and error of every way to read a prompt."""

import pathlib

import matplotlib.ticker

from crt_jax.evaluation.figures import COLORS, GREY, page_figure


def prefill(result: dict, path: str | pathlib.Path) -> None:
  """Draws time and error of every way to read a prompt, against its length.

  Args:
    result: what prefill.json holds.
  """
  curves = {}
  for row in result['rows']:
    way = row['method'] + (f', c={row["chunk"]}' if row['method'] == 'chunked' else '')
    curves.setdefault((way, row['passes']), []).append(row)
  ways = list(dict.fromkeys(way for way, passes in curves if passes))
  depths = sorted({passes for _, passes in curves if passes})
  colours = dict(zip(ways, COLORS * len(ways), strict=False))
  lines = dict(zip(depths, ('-', '--', ':', '-.') * len(depths), strict=False))
  words = f'{result["prompts"]} prompts of validation text; trained on {result["trained_length"]}'
  words += f'; K = {depths[0]}' if len(depths) == 1 else ''
  with page_figure(path, 'Reading a prompt', result, 2, words) as (left, right):
    for (way, passes), rows in curves.items():
      style = dict(color=colours.get(way, 'black'), linestyle=lines.get(passes, '-'), marker='.')
      left.plot([row['tokens'] for row in rows], [1e3 * row['seconds'] for row in rows], **style)
      errors = [(row['tokens'], row['kl']) for row in rows if row['kl'] > 0]
      if passes and errors:
        right.plot(*zip(*errors, strict=True), **style)
    left.plot([], [], color='black', label='exact, one by one')
    for way, colour in colours.items():
      left.plot([], [], color=colour, label=way)
    if len(depths) > 1:
      for passes, style in lines.items():
        right.plot([], [], color=GREY, linestyle=style, label=f'K = {passes}')
    for axes, words in ((left, 'milliseconds'), (right, 'KL to the exact next token, nats')):
      axes.set_xscale('log', base=2)
      axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
      axes.set_yscale('log')
      axes.set_xlabel('tokens of the prompt')
      axes.set_ylabel(words)
      if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc='upper left', ncols=2)
        axes.set_ylim(top=8 * axes.get_ylim()[1])  # room for the legend
