"""Layers or recurrence at one cost per token: D = 1, 2, 3 against N = 2, 4, 6 (crt.md, 10.1).

Which part of the gain is recurrence, which capacity, which training compute? Two controls answer:
`stateless`, the CRT's correction fed with nothing of the position before, trained with the one pass
that it needs, and `head_ffn`, the same capacity at the head of a transformer of D layers. Three
budgets: the multiply-accumulates of the body, those with the output layer, and the training FLOPs,
where all that is cheaper to train takes more steps.
"""

import functools
import itertools

from configs import base
from experiments.claims import budgets
from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere

HEAD = 8  # width of every head
BODY = 819_200  # multiply-accumulates of the body per token: D=2, C=160
PAIRS = ((1, 2), (2, 4), (3, 6))  # D against N
# name -> changes of configs/crt_small.py, size of the vocabulary. The novel is short: 1.5 epochs.
TEXTS = {
  'sotu': ({'data.corpus': 'sotu', 'data.vocab_size': 4096, 'train.steps': 600}, 4096),
  'novel': ({'data.corpus': 'moby_dick', 'train.steps': 300}, 1024),
}
SCORED = {'eval.depths': (), 'eval.whole_tokens': 131_072}
STATELESS = {
  'model.correction': 'stateless',
  'model.start': 'corrected',  # the first pass is already exact
  'model.depth': 1,
  'model.depth_min': 0,
  'model.convergence_weight': 0.0,
}
KINDS = {
  'crt': ('D', {}, {}),
  'stateless': ('D', STATELESS, {'correction': 'stateless'}),
  'head_ffn': ('N', {'model.style': 'roformer_head_ffn'}, {'style': 'roformer_head_ffn'}),
  'layers': ('N', {}, {}),
}


@functools.cache
def arm(text: str, kind: str, layers: int, output: bool = False, costs_as: str = '') -> Arm:
  """Returns one model on one text, at the width that meets the budget."""
  letter, changes, fields = KINDS[kind]
  own, vocabulary = TEXTS[text]
  make = base.crt_model if letter == 'D' else base.transformer_model

  def model(width: int) -> dict:
    return make(layers=layers, width=width, heads=width // HEAD, vocab_size=vocabulary, **fields)

  width = budgets.matched_width(model, BODY, HEAD, output=False)
  if output:
    total = budgets.matched_width(model, BODY + 160 * vocabulary, HEAD, output=True)
    output, width = total != width, total
  arguments = f'{letter}={layers},C={width},heads={width // HEAD}'
  name = f'{text}-{kind}{layers}' + '-total' * output + '-training' * bool(costs_as)
  return Arm(name, f'configs/crt_small.py:{arguments}', SCORED | own | changes, costs_as)


def cpu(question: str = 'body') -> Design:
  """Returns all arms; D=2 decides the question: 'body', 'training' or 'control'."""
  arms, comparisons = {}, []

  def compare(about: str, text: str, D: int, kind: str, title: str, **budget: bool):
    layers = dict(PAIRS)[D] if kind == 'layers' else D
    crt = arm(text, 'crt', D, budget.get('output', False))
    costs_as = crt.name if budget.get('training') else ''
    other = arm(text, kind, layers, budget.get('output', False), costs_as)
    arms.update({crt.name: crt, other.name: other})
    name = f'{text}, D={D} - {title}'
    decides = about == question and D == 2
    comparisons.append(Comparison(name, crt.name, other.name, decisive=decides))

  for text, (D, N) in itertools.product(TEXTS, PAIRS):
    compare('body', text, D, 'layers', f'N={N}, body FLOPs')
    compare('total', text, D, 'layers', f'N={N}, total FLOPs', output=True)
    compare('training', text, D, 'layers', f'N={N}, training FLOPs', training=True)
    for kind in ('stateless', 'head_ffn'):
      compare('control', text, D, kind, f'{kind}, body FLOPs')
      compare('control at training', text, D, kind, f'{kind}, training FLOPs', training=True)
  return Design(tuple(arms.values()), tuple(comparisons))


def published(question: str = 'body') -> Design:
  names = {'d5': 'crt_d5_c1120', 'n6': 'transformer_n6', 'n12': 'transformer_n12'}
  arms = [Arm(name, f'configs/{file}.py') for name, file in names.items()]
  arms += [
    Arm('n12_heads16', 'configs/transformer_n12.py:heads=16'),
    Arm('n6-training', 'configs/transformer_n6.py', costs_as='d5'),
  ]
  decides = {'body': ('n6', 'n12_heads16'), 'training': ('n6-training',)}[question]
  comparisons = [
    Comparison(f'd5 - {arm.name}', 'd5', arm.name, decisive=arm.name in decides) for arm in arms[1:]
  ]
  return Design(tuple(arms), tuple(comparisons))


CLAIM = Claim(
  name='layers_or_recurrence',
  sentence='At one cost per token a few layers with recurrence beat more layers without it.',
  where='CRT, 5.2 and table 1',
  hypothesis='D=2 is better than N=4 on each text, at equal body FLOPs, steps and tokens',
  published=(
    Published('perplexity, D=5 C=1120, 85 M', '36.38', 'P', 'crt.md 10.1'),
    Published('perplexity, N=6 C=1088, 85 M', '37.76', 'P', 'crt.md 10.1'),
    Published('perplexity, N=12 C=768, 85 M', '37.83', 'P', 'crt.md 10.1'),
    Published('perplexity, D=1 C=2048, 85 M', '39.94', 'N', 'crt.md 10.1'),
    Published('perplexity, D=11 C=1568, 341 M', '28.36', 'N', 'crt.md 10.1'),
    Published('perplexity, N=24 C=1088, 341 M', '28.68', 'N', 'crt.md 10.1'),
  ),
  confounds=(
    'a CRT trains with K passes, two to five times the FLOPs of its transformer',
    'budgets leave out the output layer, which the wider CRT pays more for (10.6 % against N=12)',
    'D=5 stores 17 % more parameters than N=12',
    'the 12 layers had one head, D=5 had 16',
    'one seed, no interval; evaluated on 20 random batches',
    'the correction adds capacity even without recurrence: no control at this size',
  ),
  rule=better_everywhere,
  designs={'cpu': cpu, 'published': published},
)
