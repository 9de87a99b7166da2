"""The figure: RMS of the state after each loop."""

import pathlib

import numpy as np
from matplotlib.ticker import MaxNLocator

from crt_jax.evaluation.figures import COLORS, page_figure


def state_growth(record: dict, path: str | pathlib.Path) -> None:
  """Draws the RMS of the state after each loop at initialisation, one line a variant."""
  seeds = len(next(iter(record['variants'].values())))
  made_from = (
    f'C={record["width"]}, P={record["prelude_layers"]}, at initialisation, '
    f'{record["positions"]} random tokens, {seeds} seeds, band = their range'
  )
  title = 'The state grows from loop to loop'
  with page_figure(path, title, record['origin'], made_from=made_from) as axes:
    for colour, (name, seeds) in zip(COLORS, record['variants'].items(), strict=False):
      values = np.array(seeds)
      loops = np.arange(values.shape[1])
      axes.plot(loops, values.mean(axis=0), 'o-', color=colour, label=name, markersize=4)
      axes.fill_between(loops, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
    axes.set_xlabel('loops done (0: the output of the prelude)')
    axes.set_ylabel('root mean square of the state (log scale)')
    axes.set_yscale('log')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
