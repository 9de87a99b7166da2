"""Most layers of a trained transformer are taken out: what heals it, and is it recurrence?

Some layers are kept, and training goes on in five ways with a new optimiser and in the same new
order of the text: as it is, as it is for the training FLOPs of the CRT, with the CRT's correction
but no recurrence, as a CRT, and as a CRT whose correction alone learns.
"""

import functools
from typing import NamedTuple

from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere
from experiments.claims.registered.layers_or_recurrence import (
  GPU_TEXTS,
  SCORED,
  STATELESS,
  TEXTS,
)


class Size(NamedTuple):
  """What the designs differ in.

  Attributes:
    config: of a model, whose depth takes the place of {}.
    layers: before any is taken out.
    kept: which stay.
    frozen: all parts of the model but the correction.
    whole: what the run of all layers has of its own.
  """

  texts: dict[str, dict]
  config: str
  layers: int
  kept: tuple[int, ...]
  frozen: tuple[str, ...]
  whole: dict


PARTS = ('embedding', 'layers', 'final_norm')
CPU = Size(TEXTS, 'configs/crt_small.py:{},C=128,heads=16', 6, (0, 1, 5), (*PARTS, 'output'), {})
# All 30 layers of SmolLM2 are scored after a step too small to change any parameter.
SMOLLM2 = {
  name: {
    **{field: value for field, value in own.items() if field != 'data.bpe_documents'},
    'data.vocab_size': 49_152,
    'data.tokenizer': 'runs/smollm2',
    'optimizer.learning_rate': 3e-4,
    'optimizer.warmup_steps': 100,
    'train.steps': 2000,
  }
  for name, own in GPU_TEXTS.items()
}
GPU = Size(
  SMOLLM2,
  'configs/smollm2.py:{}',
  30,
  (0, 1, 2, 3, 4, 5, 28, 29),
  PARTS,
  {
    'train.steps': 1,
    'optimizer.learning_rate': 1e-12,
    'optimizer.final_learning_rate': 1e-12,
    'optimizer.warmup_steps': 0,
  },
)


def design(size: Size) -> Design:
  left = len(size.kept)
  arms, comparisons = [], []
  for text, own in size.texts.items():
    whole, crt, depth = f'{text}-whole', f'{text}-crt', f'D={left},K=4,kmin=2'
    arms.append(Arm(whole, size.config.format(f'N={size.layers}'), SCORED | own | size.whole))
    for kind, model, more, costs_as in (
      ('plain', f'N={left}', {}, ''),
      ('plain-training', f'N={left}', {}, crt),
      ('stateless', f'D={left}', STATELESS, ''),
      ('crt', depth, {}, ''),
      ('correction', depth, {'optimizer.frozen': size.frozen}, ''),
    ):
      changes = SCORED | own | {'train.keep_layers': size.kept} | more
      arms.append(Arm(f'{text}-{kind}', size.config.format(model), changes, costs_as, whole))
    for against, title, decides in (
      ('plain', 'as it is, as many steps', False),
      ('plain-training', 'as it is, training FLOPs', True),
      ('stateless', 'the correction without recurrence, as many steps', True),
      ('correction', 'the correction alone learns', False),
      ('whole', 'all layers before', False),
    ):
      name = f'{text}, CRT - {title}'
      comparisons.append(Comparison(name, crt, f'{text}-{against}', decisive=decides))
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='retrofit',
  sentence='Where most layers are taken out of a trained transformer, recurrence heals more '
  'than training on does.',
  where='not published: a question of this project',
  hypothesis='the CRT of the kept layers is better than the kept layers trained on for as many '
  'training FLOPs, and than the same correction without recurrence',
  published=(Published('nothing', '', '', ''),),
  confounds=(
    'a CRT trains with 2 to 4 passes, which the second budget removes',
    'a transformer of seconds: what six layers of this size have learned is little',
    'one choice of layers, one learning rate',
  ),
  rule=better_everywhere,
  designs={'cpu': functools.partial(design, CPU), 'gpu': functools.partial(design, GPU)},
)
