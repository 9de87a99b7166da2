"""Half of the layers of a trained transformer are taken out: what heals it, and is it recurrence?

Six layers are trained, the first two and the last are kept, and training goes on in five ways with
a new optimiser and in the same new order of the text: as it is, as it is for the training FLOPs of
the CRT, with the CRT's correction but no recurrence, as a CRT, and as a CRT whose correction alone
learns.
"""

from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere
from experiments.claims.registered.layers_or_recurrence import SCORED, STATELESS, TEXTS

SHAPE = 'C=128,heads=16'
KEPT = {'train.keep_layers': (0, 1, 5)}
KEPT_STILL = {'optimizer.frozen': ('embedding', 'layers', 'final_norm', 'output')}


def healed(text: str, kind: str, model: str, more: dict, costs_as: str = '') -> Arm:
  """Returns one way to continue training with the kept layers."""
  changes = SCORED | TEXTS[text] | KEPT | more
  config = f'configs/crt_small.py:{model},{SHAPE}'
  return Arm(f'{text}-{kind}', config, changes, costs_as, f'{text}-whole')


def cpu() -> Design:
  arms, comparisons = [], []
  for text, own in TEXTS.items():
    crt = f'{text}-crt'
    arms += [
      Arm(f'{text}-whole', f'configs/crt_small.py:N=6,{SHAPE}', SCORED | own),
      healed(text, 'plain', 'N=3', {}),
      healed(text, 'plain-training', 'N=3', {}, crt),
      healed(text, 'stateless', 'D=3', STATELESS),
      healed(text, 'crt', 'D=3,K=4,kmin=2', {}),
      healed(text, 'correction', 'D=3,K=4,kmin=2', KEPT_STILL),
    ]
    for against, title, decides in (
      ('plain', 'as it is, as many steps', False),
      ('plain-training', 'as it is, training FLOPs', True),
      ('stateless', 'the correction without recurrence, as many steps', True),
      ('correction', 'the correction alone learns', False),
      ('whole', 'the six layers before', False),
    ):
      name = f'{text}, CRT - {title}'
      comparisons.append(Comparison(name, crt, f'{text}-{against}', decisive=decides))
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='retrofit',
  sentence='Where half of the layers are taken out of a trained transformer, recurrence heals more '
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
  designs={'cpu': cpu},
)
