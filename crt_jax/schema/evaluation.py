"""`config.eval` and `config.sample`: how a model is scored, and the text it writes."""

import dataclasses
from typing import ClassVar

from crt_jax.schema.fields import LARGEST, SEEDS, Section, field
from crt_jax.schema.model import DEEPEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
  """What is scored during training and at the end (evaluation/protocols.py)."""

  section: ClassVar[str] = 'eval'

  sample: str = field(
    'random',
    'which windows are scored',
    choices={'random': 'as in the CRT paper', 'first': 'as in the CART paper'},
  )
  batches: int = field(
    20, 'batches that sample=random scores, the same every time', least=1, most=LARGEST
  )
  seed: int = field(42, 'seed of sample=random', least=0, most=SEEDS)
  windows: int = field(50, 'windows that sample=first scores', least=1, most=LARGEST)
  whole: bool = field(True, 'at the end, also score every token of the validation sets once')
  whole_tokens: int = field(
    0,
    'most tokens of each set that `whole` scores, in each form',
    least=0,
    most=2**53,
    zero="2^20, or a tenth of the training's tokens over all forms of a set together",
  )
  depths: tuple[int, ...] = field(
    (), 'depths (K or R) scored at the end; () = the configured one', least=1, most=DEEPEST
  )
  sequential: bool = field(False, 'at the end, also score the exact recurrence')
  during_training_batches: int = field(
    20, 'batches that each validation in training scores', least=1, most=LARGEST
  )
  dtype: str = field(
    '', "dtype of scoring; '' = model.dtype", choices=('', 'float32', 'bfloat16', 'float16')
  )
  jacobian_iterations: int = field(
    0, "power iterations for the recurrence's Jacobian", least=0, most=DEEPEST, zero='never'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
  """The text that a trained model writes at the end."""

  section: ClassVar[str] = 'sample'

  prompt: str = field('The ', 'beginning of the text')
  num_tokens: int = field(200, 'tokens that are written', least=1, most=2**20)
  temperature: float = field(
    0.8, 'divides the logits', least=0, most=1e6, zero='the most likely token'
  )
  top_k: int = field(50, 'most likely tokens that are drawn from', least=0, most=2**24, zero='all')
  top_p: float = field(0.95, 'total probability of the tokens that are drawn from', above=0, most=1)
  seed: int = field(0, 'seed of the draws', least=0, most=SEEDS)
