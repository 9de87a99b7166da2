"""How far a transformer is thrown back when its new correction begins to learn, and for how long.

Drawn from the validations during training that the records of the claim `conversion` keep.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from crt_jax.evaluation.figures import BLUE, GREY, ORANGE, page_figure
from experiments import pages
from experiments.claims import records
from experiments.claims.claim import Claim

SIZE = 'cpu'
TEXT = 'novel'  # whose arms validate often (registered/conversion.py)
WAYS = {'converted': ('with a correction', ORANGE), 'plain': ('as it is', BLUE)}
HEAD = ('trained on', 'highest perplexity', 'at step', 'back where it was at step', 'at the end')
FIGURE = records.ROOT / 'docs' / 'figures' / 'disruption.png'
PAGE = """\
A transformer of two layers, {steps} steps old, is trained on for as many steps with a new \
optimiser, as it is and with a correction that begins at zero (K = 2 or 3 passes). At the start \
its perplexity on held-out text of the novel is {start}; mean of {seeds} seeds and, in brackets, \
lowest and highest:

{table}

![Validation perplexity against steps after the conversion.](figures/disruption.png)

Published (crt.md, 10.9): 7 more for about 400 steps with one layer, for 4,300 with two, 6 for \
40,000 with three, 0.11 for none with twelve. \
`python -m experiments.claims --run=conversion --only='*-novel-begun-*,*-novel-converted-*,\
*-novel-plain-s*'` repeats it, about 25 minutes on two cores."""


def text(
  claims: Mapping[str, Claim],
  path: pathlib.Path = FIGURE,
  folder: pathlib.Path = records.RESULTS,
) -> str:
  """Returns what docs/pretrained.md says of it, and draws the figure at `path`."""
  claim = claims['conversion']
  kept, seeds = records.read(claim, SIZE, folder), claim.design(SIZE).seeds
  ways = ('begun', *WAYS)
  if any((f'{TEXT}-{way}', seed) not in kept for way in ways for seed in seeds):
    return 'The runs of this figure are not there yet.'
  points = {
    way: np.array([kept[f'{TEXT}-{way}', seed]['validation'] for seed in seeds]) for way in ways
  }  # [S, V, 2]: step and nats of the V validations of S seeds
  begun_S = points['begun'][:, -1]
  start_S, rows = np.exp(begun_S[:, 1]), []
  with page_figure(path, 'Trained on from a transformer', {}) as axes:
    for way, (words, color) in WAYS.items():
      steps_V, values_SV = points[way][0, :, 0], np.exp(points[way][:, :, 1])
      highest_S = values_SV.argmax(axis=1)
      later_SV = np.arange(steps_V.size) >= highest_S[:, None]
      back_SV = np.where(later_SV & (values_SV <= start_S[:, None]), steps_V, np.inf)
      rows.append(
        [
          words,
          pages.spread(values_SV.max(axis=1), '.1f'),
          pages.spread(steps_V[highest_S], '.0f'),
          pages.spread(back_SV.min(axis=1), '.0f').replace('inf', 'never'),
          pages.spread(values_SV[:, -1], '.1f'),
        ]
      )
      axes.plot(steps_V, values_SV.mean(axis=0), color=color, label=words)
      axes.fill_between(
        steps_V, values_SV.min(axis=0), values_SV.max(axis=0), color=color, alpha=0.2
      )
    axes.axhline(start_S.mean(), color=GREY, linewidth=1, label='before')
    axes.set_xlabel('steps after the conversion')
    axes.set_ylabel('validation perplexity per token')
    axes.legend(frameon=False)
  return PAGE.format(
    steps=f'{begun_S[0, 0]:.0f}',
    start=pages.spread(start_S, '.1f'),
    seeds=len(seeds),
    table=pages.table(HEAD, rows),
  )
